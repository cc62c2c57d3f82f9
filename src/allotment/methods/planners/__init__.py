"""Planners of the neighbouring papers: CoBA-RL, DAPO, Dynamic Pruning, GRESO, GVM, Knapsack RL, MoPPS, OptPO,
Reinforce-Ada.
"""
