"""Ask/tell planners, one file per system: which prompt gets how many rollouts.

===========================  =====================================================================================
:class:`VIP`                 least variance for the budget; ``VIP.paper(...)`` is arXiv 2602.01601 as printed
:class:`RewardVarianceVIP`   the same for real-valued rewards (appendix E)
:class:`RidgeVIP`            the paper's ablation of the predictor
:class:`Uniform`             equal counts
:class:`InverseAccuracy`     the paper's ablations of the allocation
:class:`InverseVariance`
:class:`CoBARL`              capability-oriented value (arXiv 2602.03048)
:class:`Knapsack`            chance of a mixed group times its worth (arXiv 2509.25849)
:class:`GVM`                 acceptance rate and gradient norm (arXiv 2505.02391)
:class:`ReinforceAda`        rounds until a prompt shows both classes (arXiv 2510.04996 v1)
:class:`ReinforceAdaEst`     counts by the root of the success rate (the same, v3)
:class:`OptPO`               votes until an answer is sure enough, without labels (arXiv 2512.02882)
:class:`DynamicPruning`      prompts left out by lot, with importance weights (arXiv 2603.04135)
:class:`DAPO`                further prompts until enough groups are mixed (arXiv 2503.14476)
:class:`GRESO`               the same, passing over prompts that had no signal before (arXiv 2506.02177)
:class:`MoPPS`               prompts whose drawn success probability is nearest 1/2 (arXiv 2507.04632)
===========================  =====================================================================================

What each predicts, keeps and really optimises: ``docs/methods.md``.
"""

from allotment.planning.base import Planner
from allotment.planning.baselines import InverseAccuracy, InverseVariance, Uniform
from allotment.planning.coba_rl import CoBARL
from allotment.planning.dapo import DAPO
from allotment.planning.dynamic_pruning import DynamicPruning
from allotment.planning.greso import GRESO
from allotment.planning.gvm import GVM
from allotment.planning.knapsack import Knapsack
from allotment.planning.ledger import Outcome
from allotment.planning.mopps import MoPPS
from allotment.planning.optpo import OptPO
from allotment.planning.reinforce_ada import ReinforceAda
from allotment.planning.reinforce_ada_est import ReinforceAdaEst
from allotment.planning.reward_variance import RewardVarianceVIP
from allotment.planning.vip import VIP, RidgeVIP

__all__ = [
    "DAPO",
    "GRESO",
    "GVM",
    "VIP",
    "CoBARL",
    "DynamicPruning",
    "InverseAccuracy",
    "InverseVariance",
    "Knapsack",
    "MoPPS",
    "OptPO",
    "Outcome",
    "Planner",
    "ReinforceAda",
    "ReinforceAdaEst",
    "RewardVarianceVIP",
    "RidgeVIP",
    "Uniform",
]
