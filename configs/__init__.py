"""One ml_collections config a system."""
