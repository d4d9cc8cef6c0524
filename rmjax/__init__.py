"""Reward models in JAX: heads, losses, reward functions and policy optimization as pure functions under one sharded step."""

__version__ = '0.1.0'
