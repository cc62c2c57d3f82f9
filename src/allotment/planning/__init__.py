"""Ask/tell planners: which prompt gets how many rollouts.

===========================  =====================================================================================
:class:`VIP`                 least variance for the budget; ``VIP.paper(...)`` is arXiv 2602.01601 as printed
:class:`RewardVarianceVIP`   the same for real-valued rewards (appendix E)
:class:`RidgeVIP`            the paper's ablation of the predictor
:class:`Uniform`             equal counts
:class:`InverseAccuracy`     the paper's ablations of the allocation
:class:`InverseVariance`
===========================  =====================================================================================

Those of the neighbouring papers: :mod:`allotment.methods.planners`. By name: :func:`make_planner`. To write one:
:class:`Planner`, :class:`Contract`, :class:`PlannerEntry`.
"""

from typing import TYPE_CHECKING

from allotment.lazy import lazily
from allotment.planning.contract import Contract, PlannerEntry
from allotment.planning.options import SecondLook
from allotment.planning.outcome import Outcome
from allotment.planning.planner import Planner
from allotment.planning.vip import VIP

if TYPE_CHECKING:
    from allotment.planning.baselines import InverseAccuracy, InverseVariance, Uniform
    from allotment.planning.making import make_planner
    from allotment.planning.reward_variance import RewardVarianceVIP
    from allotment.planning.variants import RidgeVIP

__getattr__ = lazily(
    __name__,
    {
        "baselines": "InverseAccuracy InverseVariance Uniform",
        "making": "make_planner",
        "reward_variance": "RewardVarianceVIP",
        "variants": "RidgeVIP",
    },
)

__all__ = [
    "VIP",
    "Contract",
    "InverseAccuracy",
    "InverseVariance",
    "Outcome",
    "Planner",
    "PlannerEntry",
    "RewardVarianceVIP",
    "RidgeVIP",
    "SecondLook",
    "Uniform",
    "make_planner",
]
