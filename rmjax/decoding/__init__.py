"""Responses to prompts: sampling with a cache that all responses to a prompt share."""
