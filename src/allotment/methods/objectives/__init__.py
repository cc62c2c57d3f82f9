"""Objectives of the neighbouring papers (torch): advantages, token losses, gates, preferences, learnt rewards."""
