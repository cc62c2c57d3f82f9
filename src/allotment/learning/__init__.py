"""Advantages, aggregation and losses for ragged groups (torch)."""
