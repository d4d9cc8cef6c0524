"""Text or trajectory to reward, without training."""
