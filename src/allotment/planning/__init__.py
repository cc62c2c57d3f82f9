"""Ask/tell planners: which prompt gets how many rollouts.

===========================  =====================================================================================
:class:`VIP`                 least variance for the budget; ``VIP.paper(...)`` is arXiv 2602.01601 as printed
:class:`RewardVarianceVIP`   the same for real-valued rewards (appendix E)
:class:`RidgeVIP`            the paper's ablation of the predictor
:class:`Uniform`             equal counts
:class:`InverseAccuracy`     the paper's ablations of the allocation
:class:`InverseVariance`
===========================  =====================================================================================

Those of the neighbouring papers: :mod:`allotment.methods.planners`.
"""

from allotment.planning.base import Planner
from allotment.planning.baselines import InverseAccuracy, InverseVariance, Uniform
from allotment.planning.ledger import Outcome
from allotment.planning.reward_variance import RewardVarianceVIP
from allotment.planning.vip import VIP, RidgeVIP

__all__ = [
    "VIP",
    "InverseAccuracy",
    "InverseVariance",
    "Outcome",
    "Planner",
    "RewardVarianceVIP",
    "RidgeVIP",
    "Uniform",
]
