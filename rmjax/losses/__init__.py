"""Scores and labels to per-example losses: pure functions of arrays, none reduced over the batch."""
