"""Policy optimisation: log-probs, advantages, surrogates and constraints, each a pure function of arrays."""
