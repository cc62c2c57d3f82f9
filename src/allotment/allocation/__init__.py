"""Split the budget: exact integers, the paper's relaxation with rounding, heuristics."""
