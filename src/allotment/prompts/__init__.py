"""Prompts by name: their ids, what is kept of each, their embeddings."""
