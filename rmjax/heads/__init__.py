"""Hidden states to scores: a head holds parameters; `preference_logits` and `reward` are plain functions of its scores."""
