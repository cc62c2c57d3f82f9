"""Adapters that put a planner into other people's trainers; each is thin and imports its trainer itself."""
