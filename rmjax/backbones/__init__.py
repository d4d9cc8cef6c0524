"""Flax linen networks: tokens to hidden states."""
