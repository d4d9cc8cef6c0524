"""Mesh and sharding rules, train state, the one step, checkpoints and metrics."""
