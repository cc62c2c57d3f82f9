"""Planners of the neighbouring papers: CoBA-RL, DAPO, Dynamic Pruning, GRESO, GVM, Knapsack RL, MoPPS, OptPO,
Reinforce-Ada.

Beside its own settings each takes those of :class:`~allotment.planning.planner.Planner`, or, where it believes in
success probabilities, of :class:`~allotment.planning.success.SuccessPlanner`, and raises
:class:`~allotment.errors.InvalidInputError` where one of them is out of its range.
"""
