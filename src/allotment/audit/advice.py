"""What to do next, for somebody who knows no variance."""

from __future__ import annotations

import math

from allotment.audit.counterfactual import Counterfactual, Counterfactuals
from allotment.audit.verdict import Verdict

PRECISION = "Precision is how close a training step comes to the step that endless rollouts of its prompts would give."
"""For whoever knows no variance."""
WORTH_IT = 0.95
"""Share of the rollouts below which another shape is proposed."""


def advice(verdict: Verdict, ways: Counterfactuals, budget: int) -> tuple[str, ...]:
    """Sentences, the first thing to do first.

    Args:
        verdict: of the log.
        ways: what else its rollouts could have been spent on.
        budget: rollouts a prompt.
    """
    if verdict.outcome == "cannot say":
        return (verdict.way_out, *_shapes(ways))
    steps = []
    if verdict.first_look:
        steps.append("Clear up that doubt first: what follows holds only if the log is what it was taken for.")
    if verdict.outcome == "helps":
        steps.append(
            f"Let Allotment split the {budget} rollouts a prompt that you pay for now: each training step is then "
            "less a matter of luck, at the same cost. Or pay for that much less, and change nothing else."
        )
    elif verdict.outcome == "hurts":
        steps.append(f"Keep {budget} rollouts for every prompt.")
    else:
        steps.append(f"Nothing needs to change: {budget} rollouts for every prompt are as good as a split.")
    return (*steps, *_shapes(ways))


def _shapes(ways: Counterfactuals) -> tuple[str, ...]:
    """More prompts a step, the cheapest change first."""
    said = []
    for believes in (False, True):
        found = [w for w in ways.found if w.prompts > 1 and w.believes == believes and _pays(w)]
        if found:
            best = min(found, key=lambda way: way.whole.rollouts.value)
            said.append(_sentence(best))
    return tuple(said)


def _pays(way: Counterfactual) -> bool:
    return math.isfinite(way.whole.rollouts.high) and way.whole.rollouts.high < WORTH_IT


def _sentence(way: Counterfactual) -> str:
    saved = 100 * (1 - way.whole.rollouts.value)
    belief = ", with the prediction as part of the baseline" if way.believes else ""
    times = "twice" if way.prompts == 2 else f"{way.prompts:g} times"
    n = way.rollouts_per_prompt
    return (
        f"If a step can hold {times} as many prompts with {n} rollout{'s' if n > 1 else ''} each{belief}: about "
        f"{saved:.0f} % fewer rollouts for the same precision."
    )
