"""What do we believe about each prompt?

Every predictor here follows :class:`Predictor`: ``predict(ids)``, ``observe(ids, successes, trials)``,
``state_dict()``, ``load_state_dict(state)``.

================================ ========== =======================================================================
:class:`HierarchicalPredictor`   default    level, embeddings and each prompt's own record, all drifting, learnt online
:class:`DiscountedCounts`        baseline   each prompt's own discounted counts, a Beta posterior
:class:`LastValue`               baseline   each prompt's last observed rate
:class:`GlobalMean`              baseline   one rate for all: the moving average of VIP figure 3
:class:`GaussianProcess`         the paper  VIP Algorithm 1 as printed, on embeddings
:class:`Ridge`                   baseline   linear regression on embeddings, VIP table 3
:class:`KNearest`                baseline   nearest neighbours on embeddings
================================ ========== =======================================================================

:class:`RewardVarianceGaussianProcess` predicts the variance of a real-valued reward instead (VIP appendix E),
:class:`RecordedRewardVariance` does so without embeddings, and :class:`HierarchicalRegression` predicts any real value
of a prompt. :func:`embed` turns prompts into vectors, :func:`text_features` counts what their text shows. Importing
this loads no torch.
"""

from typing import TYPE_CHECKING

from allotment.lazy import lazily
from allotment.prediction.hierarchical import HierarchicalPredictor, default_predictor
from allotment.prediction.posteriors import Predictor, PredictorEntry

if TYPE_CHECKING:
    from allotment.prediction.baselines import DiscountedCounts, GlobalMean, KNearest, LastValue, Ridge
    from allotment.prediction.embedding import embed
    from allotment.prediction.features import distinct_parts, text_features
    from allotment.prediction.gaussian_process import GaussianProcess, RewardVarianceGaussianProcess
    from allotment.prediction.measured import GradientMoments, HierarchicalRegression, LengthPredictor
    from allotment.prediction.reward_variance import RecordedRewardVariance

__getattr__ = lazily(
    __name__,
    {
        "baselines": "DiscountedCounts GlobalMean KNearest LastValue Ridge",
        "embedding": "embed",
        "features": "distinct_parts text_features",
        "gaussian_process": "GaussianProcess RewardVarianceGaussianProcess",
        "measured": "GradientMoments HierarchicalRegression LengthPredictor",
        "reward_variance": "RecordedRewardVariance",
    },
)

__all__ = [
    "DiscountedCounts",
    "GaussianProcess",
    "GlobalMean",
    "GradientMoments",
    "HierarchicalPredictor",
    "HierarchicalRegression",
    "KNearest",
    "LastValue",
    "LengthPredictor",
    "Predictor",
    "PredictorEntry",
    "RecordedRewardVariance",
    "RewardVarianceGaussianProcess",
    "Ridge",
    "default_predictor",
    "distinct_parts",
    "embed",
    "text_features",
]
