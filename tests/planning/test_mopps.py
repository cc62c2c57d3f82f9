"""MoPPS (arXiv 2507.04632): a discounted Beta belief, one Thompson draw per candidate, those nearest to 1/2 trained."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_cases import Known, assert_same, rewards_for
from scipy.stats import beta

from allotment.errors import InfeasibleBudgetError, InvalidInputError, StateError
from allotment.methods.planners.mopps import BetaCounts, MoPPS, thompson_draws
from allotment.prediction.posteriors import BetaPosterior, updated
from allotment.types import Posterior

POOL = list(range(64))


def told(planner, p, steps, seed=0):
    random = np.random.default_rng(seed)
    for _ in range(steps):
        plan = planner.ask(POOL)
        planner.tell(plan, *rewards_for(plan, random, p))
    return planner


@given(
    visits=st.lists(st.integers(0, 8), max_size=6),
    forgetting=st.sampled_from([1.0, 0.5, 0.9]),
    prior=st.sampled_from([(1.0, 1.0), (0.5, 2.0)]),
)
@settings(deadline=None)
def test_the_belief_is_the_recursion_of_the_paper(visits, forgetting, prior):
    predictor, (a, b) = BetaCounts(forgetting=forgetting, prior=prior), prior
    for successes in visits:
        predictor.observe(["x"], [successes], [8])
        predictor.observe(["another"], [8], [8])  # nothing is taken from other prompts
        a = forgetting * a + (1 - forgetting) * prior[0] + successes
        b = forgetting * b + (1 - forgetting) * prior[1] + 8 - successes
    belief = predictor.predict(["x", "new"])
    np.testing.assert_allclose([belief.alpha, belief.beta], [[a, prior[0]], [b, prior[1]]])


BELIEFS = {
    "beta": BetaPosterior.from_counts(np.array([1.0, 3.0, 20.0]), np.array([1.0, 9.0, 2.0])),
    "normal": Posterior(np.array([-2.0, 0.0, 1.0]), np.array([0.5, 4.0, 0.0])),
    "grid": updated(
        Posterior(np.array([-2.0, 0.0, 1.0]), np.array([0.5, 4.0, 1.0])), np.array([1, 2, 3]), np.full(3, 4)
    ),
}


@pytest.mark.parametrize("name", BELIEFS)
def test_draws_follow_the_belief(name):
    u = (np.arange(4000) + 0.5) / 4000
    draws = np.stack([thompson_draws(BELIEFS[name], np.full(3, x)) for x in u])
    assert (np.diff(draws, axis=0) >= 0).all()
    np.testing.assert_allclose(draws.mean(axis=0), BELIEFS[name].success_probability(), atol=2e-3)
    np.testing.assert_allclose(draws.std(axis=0), BELIEFS[name].standard_deviation(), atol=1e-2)
    ends = [thompson_draws(BELIEFS[name], np.full(3, x)) for x in (0.0, 1 - 2.0**-53)]
    assert np.isfinite(ends).all()


def test_the_draws_nearest_to_one_half_are_trained_on_alike():
    planner = MoPPS(budget=64, trained_prompts=8)
    u = planner._draws(tuple(POOL), "thompson")  # the belief is Beta(1, 1): the draw itself
    plan = planner.ask(POOL)
    chosen = np.argsort(np.abs(u - 0.5))[:8]
    assert set(np.flatnonzero(plan.counts)) == set(chosen)
    assert plan.counts[chosen].tolist() == [8] * 8
    assert plan.allocation.counts is plan.counts


def test_a_band_takes_what_is_inside_and_fills_up_with_the_nearest():
    p = np.arange(1, 64) / 64  # known without doubt
    known = Known(dict(enumerate(np.log(p / (1 - p)))))
    inside = {i for i in range(63) if 0.3 <= p[i] <= 0.7}
    few = [
        MoPPS(budget=40, trained_prompts=5, band=(0.3, 0.7), predictor=known, seed=s).ask(range(63)) for s in range(5)
    ]
    assert all(set(np.flatnonzero(plan.counts)) < inside for plan in few)
    assert len({tuple(plan.counts) for plan in few}) == 5  # any of them
    many = MoPPS(budget=232, trained_prompts=29, band=(0.3, 0.7), predictor=known).ask(range(63))
    outside = set(np.flatnonzero(many.counts)) - inside
    assert set(np.flatnonzero(many.counts)) > inside
    assert sorted(outside) == [17, 18, 44, 45]  # p = 18/64, 19/64, 45/64, 46/64


def test_thompson_sampling_tries_what_is_little_known():
    """Two candidates for one place, their chances by numerical integration over the belief."""
    planner = MoPPS(budget=8, trained_prompts=1, bounds=(2, 8), predictor=BetaCounts())
    planner.predictor.observe([0, 1], [5, 0], [8, 1])  # Beta(6, 4) and Beta(1, 2)
    x = (np.arange(20_000) + 0.5) / 40_000  # distance from 1/2
    density = [beta.pdf(0.5 - x, a, b) + beta.pdf(0.5 + x, a, b) for a, b in ((6, 4), (1, 2))]
    farther = 1 - np.cumsum(density[1]) / 40_000
    chance = float((density[0] * farther).sum() / 40_000)
    wins, asked = 0, 3000
    for _ in range(asked):
        plan = planner.ask([0, 1])
        wins += int(plan.counts[0] > 0)
        planner.cancel(plan)
    assert 0.6 < chance < 0.9
    assert abs(wins / asked - chance) < 4 * np.sqrt(chance * (1 - chance) / asked)


def test_it_finds_the_prompts_of_middling_difficulty():
    p = np.where(np.arange(64) % 4 == 0, 0.5, np.where(np.arange(64) % 2 == 0, 0.02, 0.98))
    counts = told(MoPPS(budget=64, trained_prompts=8), p, 40).ask(POOL).counts
    assert p[counts > 0].tolist() == [0.5] * 8


def test_only_prompts_with_rollouts_are_learnt():
    planner = told(MoPPS(budget=64, trained_prompts=8, predictor=BetaCounts(forgetting=0.5)), 0.5, 1)
    belief = planner.predictor.predict(POOL)
    assert np.count_nonzero(belief.alpha + belief.beta != 2.0) == 8
    assert sorted(belief.alpha + belief.beta)[-8:] == [10.0] * 8


def test_a_remainder_and_a_small_pool():
    planner = MoPPS(budget=67, trained_prompts=8)
    assert sorted(planner.ask(POOL).counts)[-9:] == [0, 8, 8, 8, 8, 8, 9, 9, 9]
    assert planner.ask(POOL[:4]).counts.tolist().count(17) == 3
    assert MoPPS(budget=256).ask(POOL).counts.tolist() == [4] * 64
    with pytest.raises(InfeasibleBudgetError, match=r"24 \(sum of the lower bounds\) to 256"):
        planner.ask(POOL, budget=300)


def test_state_goes_on_bit_for_bit_whatever_the_order_of_the_pool(tmp_path):
    planner = told(MoPPS(budget=67, trained_prompts=8, predictor=BetaCounts(forgetting=0.5, prior=(2.0, 1.0))), 0.3, 4)
    planner.save(tmp_path / "planner")
    loaded = MoPPS(budget=67, trained_prompts=8, predictor=BetaCounts()).load(tmp_path / "planner")
    assert_same(loaded.state_dict(), planner.state_dict())
    one, other = planner.ask(POOL), loaded.ask(POOL[::-1])
    assert one.counts.tolist() == other.counts[::-1].tolist()
    for changes, named in (({"trained_prompts": 9}, "prompts"), ({"band": (0.3, 0.7)}, "band")):
        with pytest.raises(StateError, match=f"'{named}"):
            MoPPS(**{"budget": 67, "trained_prompts": 8, **changes}).load(tmp_path / "planner")
    broken = planner.state_dict()
    broken["predictor"]["prior_failures"] = -1.0
    before = planner.state_dict()
    with pytest.raises(StateError, match="prior"):
        planner.load_state_dict(broken)
    assert_same(planner.state_dict(), before)


@pytest.mark.parametrize(
    "setting",
    [
        {"trained_prompts": 0},
        {"trained_prompts": 2.0},
        {"trained_prompts": True},
        {"band": (0.7, 0.3)},
        {"band": (0.3, 1.1)},
    ],
)
def test_settings_without_meaning_are_refused(setting):
    with pytest.raises(InvalidInputError, match=next(iter(setting))):
        MoPPS(budget=64, **setting)
    with pytest.raises(InvalidInputError, match="prior"):
        BetaCounts(prior=(0.0, 1.0))
