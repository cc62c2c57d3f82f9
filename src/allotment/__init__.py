"""Allotment."""
