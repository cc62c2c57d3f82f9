"""The options of VIP, and which of them go together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from allotment.errors import InvalidInputError

if TYPE_CHECKING:
    from allotment.planning.vip import VIP

Unit = Literal["rollouts", "tokens"]
"""What a budget counts."""
PriceName = Literal["success_variance", "plug_in", "gradient_moments"]
"""What a prompt's variance is taken to depend on: E[p(1-p)], p(1-p) at the mean of p's logit, or its scores too."""
Split = Literal["exact", "relaxed"]
"""The integer optimum, or the paper's continuous relaxation, rounded (theorems 5.1, 5.2, algorithm 2)."""
_PLAIN = {"price": "success_variance", "split": "exact", "unit": "rollouts", "rounds": 1}
_OPTIONS: dict[tuple[str, object], tuple[str, ...]] = {
    ("rounds", 2): ("price", "split", "unit"),
    ("unit", "tokens"): ("split", "rounds"),
    ("price", "gradient_moments"): ("split", "rounds"),
    ("price", "plug_in"): (),
    ("split", "relaxed"): (),
}
"""What each option needs: the others named here as they are by default."""
_RLOO_ONLY = (("rounds", 2), ("price", "gradient_moments"))


def check_options(planner: VIP) -> None:
    """Refuse options that are unknown or do not fit together."""
    known = {"price": get_args(PriceName), "split": get_args(Split), "unit": get_args(Unit), "rounds": (1, 2)}
    chosen = {name: getattr(planner, name) for name in known}
    for name, value in chosen.items():
        is_known = any(type(value) is type(option) and value == option for option in known[name])
        needs_plain = _OPTIONS.get((name, value), ()) if is_known else ()
        clashes = [f"{other}={chosen[other]!r}" for other in needs_plain if chosen[other] != _PLAIN[other]]
        if is_known and (name, value) in _RLOO_ONLY and planner.estimator != "rloo":
            clashes.append(f"estimator={planner.estimator!r}")
        if not is_known or clashes:
            raise InvalidInputError(
                f"VIP cannot have these {name}" if name == "rounds" else f"VIP cannot have this {name}",
                got=f"{name}={value!r}" + (f" together with {', '.join(clashes)}" if clashes else ""),
                allowed=", ".join(map(repr, known[name]))
                + "; two rounds and gradient moments with estimator 'rloo' and "
                "the exact split alone, tokens in one round, split exactly",
                fix=f"use {name}={_PLAIN[name]!r}",
            )
