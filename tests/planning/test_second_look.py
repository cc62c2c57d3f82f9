"""VIP in two rounds, through ask and tell: what is spent, learnt and saved, and that the gradient is unbiased."""

import itertools

import numpy as np
import pytest
from planning_cases import IDS, Known, assert_same, assert_same_plan, rewards_for, snapshot

from allotment import VIP
from allotment.errors import InvalidInputError, RewardMismatchError, StateError
from allotment.planning import SecondLook
from allotment.prediction import DiscountedCounts
from allotment.prediction.posteriors import BetaPosterior

SETTINGS = {"budget": 75, "bounds": (3, 12), "rounds": 2}
REFUSED = ({"estimator": "dr_grpo"}, {"price": "plug_in"}, {"split": "relaxed"}, {"price": "gradient_moments"})


def look(**settings):
    return VIP(**{**SETTINGS, **settings})


def one_step(planner, ids=IDS, seed=0, probability=0.4, **told):
    rng, plans = np.random.default_rng(seed), []
    while True:
        plans.append(planner.ask(ids))
        planner.tell(plans[-1], *rewards_for(plans[-1], rng, probability), **told)
        if planner.done:
            return plans


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("bounds", [(3, 12), (2, 32), (6, 7), (5, 30)])
def test_a_step_spends_the_budget_within_the_bounds(share, bounds):
    planner = look(rounds=SecondLook(first_share=share), bounds=bounds)
    for step in range(6):
        first, second = one_step(planner, seed=step, probability=np.linspace(0, 1, len(IDS)))
        assert (first.step, first.round, second.step, second.round) == (step, 0, step, 1)
        total = first.counts + second.counts
        assert total.sum() == 75
        assert (bounds[0] <= total).all()
        assert (total <= bounds[1]).all()
        assert (first.counts >= 2).all()
        assert (second.counts >= np.minimum(first.expected_later, 2)).all()
        np.testing.assert_array_equal(first.expected_later, second.expected_later)
        assert (first.counts + first.expected_later).sum() == 75
        assert second.allocation.is_certified
    assert abs(first.budget / 75 - share) < 0.15 or bounds == (6, 7)


def test_what_is_expected_is_the_plan_of_one_round():
    """So that the weights of the loss are those of one round, and nothing learnt is nothing changed."""
    one, two = VIP(budget=75, bounds=(3, 12)), look()
    for planner in (one, two):
        planner.predictor.observe(IDS, range(12), [12] * 12)
    plan = two.ask(IDS)
    np.testing.assert_array_equal(plan.counts + plan.expected_later, one.ask(IDS).counts)


def test_the_second_round_goes_where_the_first_saw_variance():
    planner = VIP(budget=64, bounds=(3, 32), rounds=2, predictor=DiscountedCounts())
    first = planner.ask(range(8))
    assert first.counts.tolist() == first.expected_later.tolist() == [4] * 8
    rewards = [0] * 16 + [1, 0, 0, 1] * 2 + [1] * 8
    planner.tell(first, rewards, first.group_ids())
    second = planner.ask(range(8))
    assert min(second.counts[[4, 5]]) > max(second.counts[[0, 1, 2, 3, 6, 7]])
    successes = np.array([0, 0, 0, 0, 2, 2, 4, 4])
    belief = BetaPosterior.from_counts(first.posterior.alpha + successes, first.posterior.beta + 4 - successes)
    np.testing.assert_allclose(second.posterior.success_probability(), belief.success_probability())


def test_a_step_is_one_visit():
    """The predictor is told once, the sum of both rounds; so it forgets once."""
    belief = Known(dict.fromkeys(IDS, 0.3))
    first, second = one_step(look(predictor=belief))
    ((ids, successes, trials),) = belief.observed
    assert trials == (first.counts + second.counts).tolist()
    assert tuple(ids) == first.prompt_ids
    assert 0 < sum(successes) < sum(trials)


def test_the_second_round_may_be_asked_in_another_order():
    plain, turned = look(), look()
    for planner in (plain, turned):
        plan = planner.ask(IDS)
        planner.tell(plan, *rewards_for(plan, np.random.default_rng(3)))
    one, other = plain.ask(IDS), turned.ask(IDS[::-1])
    assert other.prompt_ids == tuple(IDS[::-1])
    for name in ("counts", "expected_later"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name)[::-1])
    rewards = {prompt: np.arange(n) % 2 for prompt, n in zip(one.prompt_ids, one.counts, strict=True)}
    for planner, plan in ((plain, one), (turned, other)):
        planner.tell(plan, np.concatenate([rewards[i] for i in plan.prompt_ids]), plan.group_ids())
    assert_same(plain.state_dict()["predictor"]["predictor"], turned.state_dict()["predictor"]["predictor"])


def test_other_prompts_wait_until_a_step_is_complete():
    """A loop that forgets `done` would else spend half of every budget, and learn nothing."""
    planner = look()
    plan = planner.ask(IDS)
    planner.tell(plan, *rewards_for(plan, np.random.default_rng(0)))
    before = snapshot(planner)
    with pytest.raises(RewardMismatchError, match=r"round 1 of step 0 is due(.|\n)*planner\.done"):
        planner.ask(IDS[:-1], budget=60)
    with pytest.raises(InvalidInputError, match="later round of a step"):
        planner.ask(IDS, budget=75)
    assert_same(snapshot(planner), before)


def test_several_steps_may_be_under_way():
    planner = look(bounds=(3, 32))
    one, two = planner.ask(IDS[:6]), planner.ask(IDS[6:])
    for plan in (two, one):
        planner.tell(plan, *rewards_for(plan, np.random.default_rng(plan.step)))
        assert not planner.done
    for ids, step in ((IDS[:6], 0), (IDS[6:], 1)):
        plan = planner.ask(ids)
        assert (plan.step, plan.round) == (step, 1)
        planner.tell(plan, *rewards_for(plan, np.random.default_rng(step)))
        assert planner.done
    assert planner.ask(IDS).step == 2


def test_asking_a_round_does_not_change_whether_the_step_last_told_is_complete():
    planner = look(bounds=(3, 32))
    for plan in (planner.ask(IDS[:6]), planner.ask(IDS[6:])):
        planner.tell(plan, *rewards_for(plan, np.random.default_rng(0)))
    plan = planner.ask(IDS[:6])
    assert not planner.done
    planner.tell(plan, *rewards_for(plan, np.random.default_rng(1)))
    planner.ask(IDS[6:])
    assert planner.done


def test_cancelling():
    """Round 0: as if never asked. Round 1: the step ends with what round 0 brought."""
    belief = Known(dict.fromkeys(IDS, 0.3))
    planner = look(predictor=belief)
    planner.cancel(planner.ask(IDS))
    assert planner.done
    assert planner.ask(IDS).round == 0
    planner = look(predictor=belief)
    first = planner.ask(IDS)
    planner.tell(first, *rewards_for(first, np.random.default_rng(0)))
    planner.cancel(planner.ask(IDS))
    assert planner.done
    assert belief.observed[-1][2] == first.counts.tolist()
    assert planner.ask(IDS[:6], budget=40).step == 1


def test_rollouts_that_do_not_come_back():
    """What came back decides; the second round still spends what was planned for it."""
    planner = look(bounds=(3, 32))
    first = planner.ask(IDS)
    groups = first.group_ids()
    keep = [i for i, g in enumerate(groups) if g not in IDS[:2]][1:]
    planner.tell(first, np.arange(len(keep)) % 2, [groups[i] for i in keep], allow_missing_groups=True)
    second = planner.ask(IDS)
    assert first.budget + second.budget == 75
    groups = second.group_ids()
    planner.tell(second, np.zeros(len(groups) - 1), groups[:-1])
    assert planner.done
    assert planner.missing_rollouts == 75 - len(keep) - len(groups) + 1


@pytest.mark.parametrize(
    "predictor", [DiscountedCounts, lambda: Known(dict.fromkeys(IDS, 0.5), dict.fromkeys(IDS, 2.0))]
)
@pytest.mark.parametrize("moment", ["round 0 open", "between", "round 1 open", "round 1 partly told"])
def test_saved_and_loaded_in_the_middle_of_a_step(predictor, moment, tmp_path):
    planner, loaded = look(predictor=predictor()), look(predictor=predictor())
    one_step(planner, IDS[:8], seed=1)
    rng = np.random.default_rng(4)
    plan = planner.ask(IDS)
    told = rewards_for(plan, rng)
    if moment != "round 0 open":
        planner.tell(plan, *told)
    if moment.startswith("round 1"):
        plan = planner.ask(IDS)
        told = rewards_for(plan, rng)
        if moment == "round 1 partly told":
            planner.tell(plan, told[0][:5], told[1][:5], final=False)
            told = told[0][5:], told[1][5:]
    planner.save(tmp_path / "state")
    loaded.load(tmp_path / "state")
    assert_same(loaded.state_dict(), planner.state_dict())
    assert loaded.done == planner.done
    for again in (planner, loaded):
        if moment != "between":
            (opened,) = again.open_plans
            np.testing.assert_array_equal(opened.expected_later, plan.expected_later)
            again.tell(opened, *told)
    for _ in range(3):
        one, other = planner.ask(IDS), loaded.ask(IDS)
        assert_same_plan(one, other)
        rewards = rewards_for(one, rng)
        planner.tell(one, *rewards)
        loaded.tell(other, *rewards)
        assert_same(loaded.state_dict(), planner.state_dict())


def test_a_damaged_state_loads_nothing():
    planner = look()
    plan = planner.ask(IDS)
    planner.tell(plan, *rewards_for(plan, np.random.default_rng(0)))
    fresh = look()
    before = snapshot(fresh)
    damages = (
        {"budget": 7.5},
        {"round": None},
        {"expected_later": np.zeros(2, dtype=np.int64)},
        {"is_open": 7},
        {"outcome": {}},
    )
    for damage in damages:
        state = planner.state_dict()
        state["predictor"]["rounds"]["steps"]["0"] |= damage
        with pytest.raises(StateError):
            fresh.load_state_dict(state)
        assert_same(snapshot(fresh), before)
    with pytest.raises(StateError, match="rounds"):
        VIP(budget=75, bounds=(3, 12)).load_state_dict(planner.state_dict())


@pytest.mark.parametrize(
    "settings",
    [
        {"rounds": 3},
        {"rounds": "2"},
        {"rounds": True},
        *({"rounds": look, **other} for look in (2, SecondLook()) for other in REFUSED),
    ],
)
def test_refuses_what_it_cannot_price(settings):
    with pytest.raises(InvalidInputError, match="rounds") as caught:
        look(**settings)
    assert "fix:" in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 1.0, -1, float("nan")])
def test_refuses_a_share_outside_its_range(share):
    with pytest.raises(InvalidInputError, match="share"):
        look(rounds=SecondLook(first_share=share))


def test_the_gradient_is_unbiased_through_the_planner():
    """Every outcome of round 0 of two prompts, the counts the planner gives, every outcome of round 1.

    The score of a 0/1 policy of one logit is r - p, its gradient p (1 - p); p is unlike the belief. Pooled groups fail.
    """
    pytest.importorskip("torch")
    p_Q, known = np.array([0.3, 0.8]), {}
    planner = VIP(budget=16, bounds=(3, 12), rounds=2)
    fresh = planner.state_dict()
    sums = {"unbiased": np.zeros(2), "pooled": np.zeros(2)}
    second_counts = set()
    for early in itertools.product([0, 1], repeat=8):
        planner.load_state_dict(fresh)
        first = planner.ask(range(2))
        planner.tell(first, early, first.group_ids())
        second = planner.ask(range(2))
        second_counts.add(tuple(second.counts))
        owns = [early[4 * q : 4 * q + 4] for q in range(2)]
        chance = np.prod([np.where(own, p_Q[q], 1 - p_Q[q]).prod() for q, own in enumerate(owns)])
        for (name, sum_Q), q in itertools.product(sums.items(), range(2)):
            key = (p_Q[q], owns[q], int(second.counts[q]), int(first.expected_later[q]), name)
            if key not in known:
                known[key] = expected_estimate(*key)
            sum_Q[q] += chance * known[key]
    assert len(second_counts) > 2  # the counts do depend on what came back
    np.testing.assert_allclose(sums["unbiased"], p_Q * (1 - p_Q), rtol=1e-12)
    assert (np.abs(sums["pooled"] / (p_Q * (1 - p_Q)) - 1) > 0.01).any()


def expected_estimate(p, early, later, expected, name):
    """Mean over all outcomes of the second round of the mean of advantage times score."""
    import torch

    from allotment.learning import second_look_advantages

    late_PN = np.array(list(itertools.product([0.0, 1.0], repeat=later)))
    rewards_PN = np.hstack([np.tile(np.array(early, dtype=float), (len(late_PN), 1)), late_PN])
    paths, size = rewards_PN.shape
    groups_N = torch.arange(paths).repeat_interleave(size)
    rounds_N = torch.tensor([0] * len(early) + [1] * later).repeat(paths)
    expected_N = torch.full_like(groups_N, expected)
    advantages_N = second_look_advantages(torch.tensor(rewards_PN.ravel()), groups_N, rounds_N, expected_N, name)
    estimates_P = (advantages_N.numpy().reshape(paths, size) * (rewards_PN - p)).mean(1)
    return float(np.where(late_PN > 0, p, 1 - p).prod(1) @ estimates_P)
