import math

import pytest

from allotment.errors import ConfigError
from allotment.methods.objectives.jackpot import Jackpot

INFINITE = math.inf


def test_settings_that_cannot_be_are_refused():
    for settings in (
        {"rate": 0.0},
        {"rate": 1.01},
        {"lam": -1.0},
        {"lam": INFINITE},
        {"c1": 0.0},
        {"c2": -1.0},
        {"target": "reference"},
        {"average": "kept"},
        {"average": "accepted"},
        {"normaliser": "all"},
        {"normaliser": "exact", "target": "old"},
        {"top_k": 0},
    ):
        with pytest.raises(ConfigError, match="jackpot"):
            Jackpot(**settings)


def test_defaults():
    assert (Jackpot().rate, Jackpot().lam, Jackpot().top_k) == (0.95, None, 20)
    assert (Jackpot().target, Jackpot().average) == ("current", "all")
    assert Jackpot().needs == ("rollout", "uniforms")
    assert Jackpot(normaliser="top_k").needs == ("rollout", "uniforms", "distributions")
