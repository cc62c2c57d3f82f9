"""The options of VIP, which of them go together; and a step in two rounds.

Two rounds (docs/second_look.md): a first share of the budget, a look at what came back, the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import numpy.typing as npt

from allotment.allocation import allocate_exact
from allotment.errors import InvalidInputError
from allotment.planning.rounds import Step
from allotment.prediction import Predictor, default_predictor
from allotment.prediction.posteriors import updated
from allotment.pricing import SecondLookPrice
from allotment.prompts.embeddings import Embeddings
from allotment.types import Plan, Posterior, PromptIds

if TYPE_CHECKING:
    from allotment.planning.outcome import Outcome
    from allotment.planning.vip import VIP

Unit = Literal["rollouts", "tokens"]
"""What a budget counts."""
PriceName = Literal["success_variance", "plug_in", "gradient_moments"]
"""What a prompt's variance is taken to depend on: E[p(1-p)], p(1-p) at the mean of p's logit, or its scores too."""
Split = Literal["exact", "relaxed"]
"""The integer optimum, or the paper's continuous relaxation, rounded (theorems 5.1, 5.2, algorithm 2)."""
Choose = Literal["rollouts", "prompts"]
"""What is chosen: how many rollouts each prompt gets, or which prompts get some, too."""
Baseline = Literal["belief", "score_weighted"]
"""What of the belief rollouts are compared with: the believed mean reward, or what is best for their scores' sizes."""
_PLAIN = {
    "price": "success_variance",
    "split": "exact",
    "unit": "rollouts",
    "rounds": 1,
    "choose": "rollouts",
    "baseline": "belief",
}
_OPTIONS: dict[tuple[str, object], tuple[str, ...]] = {
    ("rounds", 2): ("price", "split", "unit", "choose"),
    ("unit", "tokens"): ("split", "rounds"),
    ("price", "gradient_moments"): ("split", "rounds", "choose"),
    ("price", "plug_in"): ("choose",),
    ("split", "relaxed"): ("choose",),
    ("choose", "prompts"): ("price", "split", "rounds"),
    ("baseline", "score_weighted"): ("split", "rounds"),
}
"""What each option needs: the others named here as they are by default."""
_ESTIMATORS: dict[tuple[str, object], tuple[str, ...]] = {
    ("rounds", 2): ("rloo",),
    ("price", "gradient_moments"): ("rloo",),
    ("price", "plug_in"): ("rloo", "dr_grpo"),
    ("split", "relaxed"): ("rloo", "dr_grpo"),
    ("choose", "prompts"): ("rloo", "shrinkage"),
    ("baseline", "score_weighted"): ("shrinkage",),
}
"""The estimators that go with an option, where not all do."""


def check_options(planner: VIP) -> None:
    """Refuse options that are unknown or do not fit together."""
    known: dict[str, tuple[object, ...]] = {
        "price": get_args(PriceName),
        "split": get_args(Split),
        "unit": get_args(Unit),
        "rounds": (1, 2),
        "choose": get_args(Choose),
        "baseline": get_args(Baseline),
    }
    chosen = {name: getattr(planner, name) for name in known}
    for name, value in chosen.items():
        is_known = any(type(value) is type(option) and value == option for option in known[name])
        needs_plain = _OPTIONS.get((name, value), ()) if is_known else ()
        clashes = [f"{other}={chosen[other]!r}" for other in needs_plain if chosen[other] != _PLAIN[other]]
        if is_known and planner.estimator not in _ESTIMATORS.get((name, value), (planner.estimator,)):
            clashes.append(f"estimator={planner.estimator!r}")
        if not is_known or clashes:
            raise InvalidInputError(
                f"VIP cannot have these {name}" if name == "rounds" else f"VIP cannot have this {name}",
                got=f"{name}={value!r}" + (f" together with {', '.join(clashes)}" if clashes else ""),
                allowed=", ".join(map(repr, known[name]))
                + "; two rounds and gradient moments with estimator 'rloo' and the exact split alone, tokens in one "
                "round, split exactly; prompts chosen with 'rloo' or 'shrinkage', by success variance, in one round; a "
                "baseline weighted by scores with 'shrinkage'",
                fix=f"use {name}={_PLAIN[name]!r}",
            )


def predictor_of(
    predictor: Predictor | None, embeddings: Embeddings | None, ids: PromptIds | None, features: npt.ArrayLike | None
) -> Predictor:
    """The predictor, or the default one; refuses embeddings, ids or features beside one that was made before."""
    about_prompts = (embeddings, ids, features)
    if predictor is None:
        return default_predictor(*about_prompts)
    if any(given is not None for given in about_prompts):
        raise InvalidInputError(
            "embeddings for a predictor that was made before",
            got=f"predictor {type(predictor).__name__} together with embeddings, ids or features",
            allowed="either a predictor, or embeddings for the default one",
            fix="give the embeddings to the predictor",
        )
    return predictor


def check_lengths(outcome: Outcome) -> None:
    """Refuse an outcome without lengths where the budget is in tokens."""
    if outcome.lengths_N is None and len(outcome.rewards_N):
        raise InvalidInputError(
            "a planner with a token budget was told no lengths",
            got=f"{len(outcome.rewards_N)} rewards",
            allowed="the completion tokens of every rollout beside its reward",
            fix="tell(plan, rewards, group_ids, lengths=[...])",
        )


LEAST_FIRST = 2
"""Fewest rollouts of a prompt in round 0: fewer have no leave-one-out baseline of their own."""
LEAST_SECOND = 2
"""Fewest in round 1 where more than one is expected: the baseline then draws on the round's other rollouts."""


@dataclass(frozen=True)
class SecondLook:
    """How the two rounds of a step are made; ``VIP(rounds=SecondLook(...))``.

    The loss needs :func:`allotment.learning.second_look_advantages`: RLOO on the pooled group is biased.
    """

    first_share: float = 0.5
    """Part of each prompt's expected rollouts that is generated in round 0, in (0, 1), else InvalidInputError."""

    def __post_init__(self) -> None:
        if not 0.0 < self.first_share < 1.0:
            raise InvalidInputError(
                "bad share of the first round", got=self.first_share, allowed="in (0, 1)", fix="use 0.5"
            )

    def first_round(self, plan: Plan) -> Plan:
        """Round 0 of the step that ``plan`` would do in one round."""
        share_Q = np.round(self.first_share * plan.counts).astype(np.int64)
        first_Q = np.minimum(np.maximum(share_Q, LEAST_FIRST), plan.counts)
        return replace(plan, counts=first_Q, expected_later=plan.counts - first_Q)


def second_round(
    step: Step, prior: Posterior, threshold: float, bounds: tuple[int, int], tie_keys_Q: npt.NDArray[np.uint64]
) -> Plan | None:
    """Round 1 of a step, in the order of its outcome; ``prior`` [Q] is without round 0. None after round 1."""
    first, expected_Q = step.outcome, step.expected_later
    if first is None or expected_Q is None or step.round > 0 or not expected_Q.any():
        return None
    successes_Q, trials_Q = first.successes(threshold), first.received
    posterior = updated(prior, successes_Q, trials_Q)
    price = SecondLookPrice.of(posterior, successes_Q, trials_Q, expected_Q)
    live_Q = expected_Q > 0
    lower_Q = np.maximum(bounds[0] - first.planned, np.minimum(expected_Q, LEAST_SECOND))
    allocation = allocate_exact(
        SecondLookPrice(price.first[live_Q], price.second[live_Q]),
        int(expected_Q.sum()),
        lower=lower_Q[live_Q],
        upper=(bounds[1] - first.planned)[live_Q],
        tie_keys=tie_keys_Q[live_Q],
    )
    counts_Q = np.zeros_like(expected_Q)
    counts_Q[live_Q] = allocation.counts
    whole = replace(allocation, counts=counts_Q)
    return Plan(first.prompt_ids, counts_Q, step.number, 1, posterior, whole, expected_Q)
