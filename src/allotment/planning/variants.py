"""VIP under the names of its variants, as the registry has them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt

from allotment.checks import check_setting, whole
from allotment.planning.contract import Contract, PlannerEntry
from allotment.planning.planner import Common
from allotment.planning.vip import VIP
from allotment.prediction import HierarchicalRegression, LengthPredictor, Ridge
from allotment.prompts.embeddings import Embeddings
from allotment.registry import UNBIASED, Row
from allotment.types import PromptIds


class RidgeVIP(VIP):
    """The paper's ablation of the predictor: ridge regression on embeddings, the paper's allocation (table 3)."""

    def __init__(
        self,
        *,
        embeddings: Embeddings,
        ids: PromptIds | None = None,
        success_threshold: float = 0.5,
        **common: Unpack[Common],
    ) -> None:
        belief = Ridge(embeddings, ids=ids)
        super().__init__(
            predictor=belief, price="plug_in", split="relaxed", success_threshold=success_threshold, **common
        )


def token_vip(
    *,
    budget: int,
    tokens_per_rollout: float = 1.0,
    embeddings: Embeddings | None = None,
    ids: PromptIds | None = None,
    features: npt.ArrayLike | None = None,
    success_threshold: float = 0.5,
    **settings: Any,
) -> VIP:
    """VIP with a token budget: that of ``budget`` rollouts of ``tokens_per_rollout`` tokens."""
    about: dict[str, Any] = {"embeddings": embeddings, "ids": ids, "features": features}
    check_setting("tokens_per_rollout", tokens_per_rollout, 0 < tokens_per_rollout < np.inf, "a positive number")
    lengths = LengthPredictor(typical_length=tokens_per_rollout, model=HierarchicalRegression(**about))
    return VIP(
        budget=int(whole("budget", budget) * tokens_per_rollout),
        unit=lengths,
        success_threshold=success_threshold,
        **about,
        **settings,
    )


DEFAULT = PlannerEntry(
    VIP,
    row=Row.before(
        "success probability: hierarchical model of counts, embeddings and drift",
        "arXiv 2602.01601",
        "three, each measured: predictor, `E[p(1-p)]` for `p(1-p)`, exact integers; `vip-paper` has none",
    ),
)
_JOINT_ROW = Row.before(
    "success probability: hierarchical model of counts, embeddings and drift",
    "[which prompts, how many rollouts, which baseline](joint.md)",
    "not in a paper",
    optimises=UNBIASED,
)
JOINT = PlannerEntry(
    partial(VIP, estimator="shrinkage", choose="prompts"),
    Contract(leaves_out=True, weights=True, baselines=True),
    candidates=16,
    estimator="shrinkage",
    row=_JOINT_ROW,
)
JOINT_SCORES = replace(
    JOINT,
    make=partial(JOINT.make, baseline="score_weighted"),
    contract=replace(JOINT.contract, told=frozenset({"scores"})),
    row=replace(
        _JOINT_ROW,
        predicts="success probability and sizes of scores",
        deviations="not in a paper; the toy tells no scores, so it is `joint` here",
    ),
)
MOMENTS = PlannerEntry(
    partial(VIP, price="gradient_moments"),
    Contract(told=frozenset({"scores"})),
    row=Row.before(
        "success probability and gradient moments",
        "[gradient moments](gradient_moments.md)",
        "not in a paper; the toy tells no scores, so counts here are those of `vip`",
    ),
)
SECOND_LOOK = PlannerEntry(
    partial(VIP, rounds=2),
    Contract(several_rounds=True, own_advantages="second_look"),
    row=Row.before(
        "success probability, twice a step",
        "[a second look](second_look.md)",
        "not in a paper",
        decides="before generation and after half of it",
        optimises="the mean success probability with `second_look_advantages`: 1; RLOO on the pooled group is biased",
    ),
)
TOKENS = PlannerEntry(
    token_vip,
    Contract(in_tokens=True, spends=(0.0, float("inf")), told=frozenset({"lengths"})),
    row=Row.before(
        "success probability and length",
        "[prediction](prediction.md)",
        "not in a paper; answers of the toy are one token long",
        keeps="C tokens in expectation",
    ),
)
PAPER = PlannerEntry(
    VIP.paper,
    needs=("embeddings",),
    row=Row.before("success probability: Gaussian process on embeddings", "arXiv 2602.01601, as printed", "none"),
)
RIDGE = PlannerEntry(
    RidgeVIP,
    needs=("embeddings",),
    row=Row.before("success probability: ridge regression on embeddings", "arXiv 2602.01601, table 3", "none"),
)
