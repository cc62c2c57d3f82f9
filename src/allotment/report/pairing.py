"""Which uniform run a run is compared with: the same settings and seed, the same learning rate or one of its own.

Planners have best learning rates of their own, so an arm may be compared at a rate that is not uniform's. Then it is
said, and only where there is one rate of uniform to choose: choosing among several by what came out favours luck.
"""

from __future__ import annotations

from dataclasses import dataclass

from allotment.report.data import BOOKKEEPING, METHOD, Arm, Study, setting_key
from allotment.report.run import Run, not_recorded


@dataclass(frozen=True)
class Reference:
    """The uniform runs that an arm is compared with, or why there are none."""

    runs: tuple[Run, ...] = ()
    rates: tuple[float, float] | None = None
    """The learning rates of the arm and of its reference where they differ."""
    missing: str = ""
    """Why there are no runs, in words."""

    def partner(self, run: Run, step: int) -> Run | None:
        """The uniform run of the same seed that was evaluated at ``step``."""
        seed = run.config.seed
        found = (r for r in self.runs if r.config.seed == seed and step in r.evaluations and _same_draws(run, r))
        return next(found, None)


def reference_of(arm: Arm, study: Study) -> Reference:
    """What an arm is compared with: uniform at the arm's learning rate, else at the only other rate there is."""
    if unknown := [name for name in ("planner", "seed", "learning_rate") if name in not_recorded(arm.config)]:
        return Reference(missing=f"since no file says its {', '.join(unknown).replace('_', ' ')}")
    own, key = arm.config.learning_rate, _compared(arm.runs[0])
    runs = [run for run in study.runs if _is_plain_uniform(run) and _compared(run) == key]
    rates = sorted({run.config.learning_rate for run in runs})
    if not rates:
        return Reference(missing="for want of a uniform run of equal settings, seed and step")
    if own not in rates and len(rates) > 1:
        several = ", ".join(f"{rate:g}" for rate in rates)
        return Reference(missing=f"since uniform ran at several learning rates ({several}), none of them its {own:g}")
    rate = own if own in rates else rates[0]
    chosen = tuple(run for run in runs if run.config.learning_rate == rate)
    return Reference(chosen, None if rate == own else (own, rate))


def _is_plain_uniform(run: Run) -> bool:
    return run.config.planner == "uniform" and getattr(run.config, "select", None) is None


def _compared(run: Run) -> str:
    """What must be equal in a pair. Not the number of steps where the learning rate is constant: a step is a step."""
    is_constant = getattr(run.config, "is_constant", True)
    return setting_key(run.config, BOOKKEEPING | METHOD | {"learning_rate"} | ({"steps"} if is_constant else set()))


def _same_draws(run: Run, other: Run) -> bool:
    """Whether both drew the same prompts at first: in runs from Python the recorded seed is the planner's alone."""
    if run.from_python is None and other.from_python is None:
        return True
    first, second = ({row["prompt_id"] for row in r.rollouts if row["step"] == 1} for r in (run, other))
    return first <= second or second <= first
