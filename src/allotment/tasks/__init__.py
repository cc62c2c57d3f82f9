"""Verifiable tasks and their strict verifiers."""
