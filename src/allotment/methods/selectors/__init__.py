"""Selectors of the neighbouring papers: which of the generated rollouts are trained on (numpy alone)."""
