"""One battery over every planner: budget, degenerate batches, invariances, no look ahead, state, partial rewards, cost.

The planners are those of the registry, each with the promises of its contract; see ``battery_cases.py``.
"""

import copy

import numpy as np
import pytest
from battery_cases import CASES, DEFAULTS, OFFERED, World, cases, one_step, rows, total_counts
from planning_cases import IDS, assert_same, snapshot

from allotment.errors import InfeasibleBudgetError, RewardMismatchError
from allotment.planning import Contract, Planner, PlannerEntry, Uniform, make_planner
from allotment.registry import PLANNERS
from theory.toy import Policy, Toy

every_planner = pytest.mark.parametrize("name", CASES)
every_new_planner = pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.is_embedded])


def check_step(case, plans, budget=None):
    """The promises of the method about one step; the counts by prompt."""
    counts, budget = total_counts(plans), budget or case.budget
    total = sum(counts.values())
    assert case.least * budget <= total <= case.most * budget
    lower, upper = case.bounds
    for n in counts.values():
        assert lower <= n <= upper or (n == 0 and case.drops)
    assert len(plans) == 1 or case.has_rounds
    for number, plan in enumerate(plans):
        assert (plan.weights is not None) == case.contract.weights
        assert (plan.baselines is not None) == case.contract.baselines
        assert plan.counts.dtype == np.int64
        assert (plan.counts >= 0).all()
        assert (plan.step, plan.round) == (plans[0].step, number)
        if plan.posterior is not None:
            p_Q = plan.posterior.success_probability()
            assert np.all((p_Q >= 0) & (p_Q <= 1))
    return counts


@pytest.mark.parametrize("name", PLANNERS.names)
def test_the_contract_of_a_name_is_that_of_the_planner(name):
    """With the default settings, whatever is offered."""
    planner = make_planner(name, offered=OFFERED, **DEFAULTS)
    assert planner.contract == PLANNERS[name].contract
    assert planner.name == name


@every_planner
def test_the_contract_says_what_selection_takes(name):
    case = CASES[name]
    planner = case.make()
    assert planner.contract == case.contract
    needs = None if planner.selector is None else planner.selector.NEEDS
    assert needs == case.contract.selects


@every_planner
def test_what_the_contract_names_is_all_that_must_be_told(name):
    """Beside rewards; and with scores of every rollout as well, where they are named."""
    case, world = CASES[name], World()
    planner = case.make()
    for _ in range(3):
        plans = []
        while not plans or not planner.done:
            plans.append(planner.ask(IDS))
            told = world.answer(plans[-1])
            told["scores"] = np.sin(np.arange(3.0 * plans[-1].budget)).reshape(-1, 3)
            named = {"rewards", "group_ids", *case.contract.told}
            planner.tell(plans[-1], **{key: column for key, column in told.items() if key in named})
            assert len(plans) < 200
        check_step(case, plans)


HALVED = Contract(spends=(0.5, 0.52))


class Halved(Uniform):
    """A planner of another package that spends half of its budget."""

    @property
    def contract(self):
        return HALVED

    def _open(self, ids, budget):
        return super()._open(ids, (budget + 1) // 2)


def test_a_planner_of_another_package_is_in_the_battery():
    """Its case is made from what it declares, and finds out whether it keeps to it."""
    PLANNERS.register("halved", PlannerEntry(Halved, HALVED))
    PLANNERS.register("wrong", PlannerEntry(Halved))
    try:
        both = cases()
        assert {*both} == {*PLANNERS.names}
        check_step(both["halved"], one_step(both["halved"].make(), IDS, World()))
        with pytest.raises(AssertionError):
            check_step(both["wrong"], one_step(both["wrong"].make(), IDS, World()))
    finally:
        PLANNERS.unregister("halved")
        PLANNERS.unregister("wrong")
    assert {*cases()} == {*PLANNERS.names} < {*CASES}


@every_planner
def test_budget_and_bounds(name):
    case, world = CASES[name], World()
    planner = case.make()
    assert isinstance(planner, Planner)
    rng = np.random.default_rng(0)
    for step in range(8):
        batch = [IDS[i] for i in rng.permutation(len(IDS))]
        plans = one_step(planner, batch, world)
        check_step(case, plans)
        assert plans[0].step == step
        assert planner.done
        assert not planner.open_plans
    assert planner.missing_rollouts == 0


@every_planner
def test_a_budget_below_the_least_counts_is_refused_and_changes_nothing(name):
    case, world = CASES[name], World()
    planner = case.make()
    one_step(planner, IDS, world)
    before = snapshot(planner)
    with pytest.raises(InfeasibleBudgetError, match=r"allowed: (.|\n)*fix: "):
        planner.ask(IDS, budget=2)
    assert_same(snapshot(planner), before)
    check_step(case, one_step(planner, IDS, world))


@every_planner
@pytest.mark.parametrize("p", [0.0, 1.0, "both"])
def test_prompts_that_always_fail_or_always_succeed(name, p):
    case = CASES[name]
    planner, world = case.make(), World({i: float(k % 2) for k, i in enumerate(IDS)} if p == "both" else p)
    for _ in range(5):
        check_step(case, one_step(planner, IDS, world))


@every_new_planner
def test_prompts_never_seen(name):
    """New prompts at every step, alone and among known ones."""
    case, world = CASES[name], World()
    planner = case.make()
    for step in range(4):
        new = [f"new {step} {i}" for i in range(len(IDS))]
        check_step(case, one_step(planner, new, world))
        check_step(case, one_step(planner, [*new[:6], *IDS[:6]], world))


@every_planner
def test_a_batch_of_one_prompt(name):
    case, world = CASES[name], World(0.5)
    planner = case.make(budget=8)
    for _ in range(4):
        check_step(case, one_step(planner, IDS[:1], world), budget=8)


@every_planner
def test_the_order_of_the_batch_does_not_matter(name):
    """Every round of every step, with beliefs learnt in another order too."""
    plain, turned = CASES[name].make(), CASES[name].make()
    worlds, rng = (World(), World()), np.random.default_rng(1)
    for _ in range(6):
        order = [IDS[i] for i in rng.permutation(len(IDS))]
        steps = [one_step(*run) for run in ((plain, IDS, worlds[0]), (turned, order, worlds[1]))]
        by_prompt = [[dict(zip(p.prompt_ids, p.counts.tolist(), strict=True)) for p in plans] for plans in steps]
        assert by_prompt[0] == by_prompt[1]


@every_planner
def test_the_order_and_the_parts_in_which_rewards_are_told_do_not_matter(name):
    whole, parts = CASES[name].make(), CASES[name].make()
    worlds, rng = (World(), World()), np.random.default_rng(2)
    for _ in range(10):
        plans = whole.ask(IDS), parts.ask(IDS)
        np.testing.assert_array_equal(plans[0].counts, plans[1].counts)
        told = worlds[0].answer(plans[0])
        whole.tell(plans[0], **told)
        order = rng.permutation(plans[0].budget)
        half = plans[0].budget // 2
        for chosen, is_last in ((order[:half], False), ([], False), (order[half:], True)):
            parts.tell(plans[1], **rows(told, chosen), final=is_last)
        assert whole.done == parts.done


@every_planner
def test_padding_rows_are_refused_and_change_nothing(name):
    """Rows that fill up a batch for data parallelism are nobody's rollouts."""
    planner, world = CASES[name].make(), World()
    one_step(planner, IDS, world)
    plan = planner.ask(IDS)
    told = world.answer(plan)
    before = snapshot(planner)
    padded = rows(told, [*range(plan.budget), plan.budget - 1])
    with pytest.raises(RewardMismatchError, match="padding"):
        planner.tell(plan, **padded)
    assert_same(snapshot(planner), before)
    planner.tell(plan, **told)


@every_new_planner
def test_padding_prompts_whose_rollouts_never_come_stay_unknown(name):
    planner, world = CASES[name].make(), World()
    for _ in range(2):
        plans = [planner.ask([*IDS[:-1], "padding"])]
        while True:
            told = world.answer(plans[-1])
            real = [i for i, group in enumerate(told["group_ids"]) if group != "padding"]
            planner.tell(plans[-1], **rows(told, real), allow_missing_groups=True)
            if planner.done:
                break
            plans.append(planner.ask([*IDS[:-1], "padding"]))
            assert len(plans) < 200
    predictor, both = getattr(planner, "predictor", None), ["padding", "never asked"]
    if hasattr(predictor, "predict_variance"):
        assert np.ptp(predictor.predict_variance(both)) == 0
    elif predictor is not None:
        known = predictor.predict(both)
        assert known.mean[0] == known.mean[1]
        assert known.variance[0] == known.variance[1]


@every_planner
@pytest.mark.parametrize("fork", [(2, 0), (3, 1)])
def test_no_plan_uses_what_comes_after_it(name, fork):
    """Two worlds that differ from one round on: the same plans up to and with that round; and none changes later."""
    planners, worlds = [CASES[name].make() for _ in range(2)], (World(), World(fork=fork))
    seen, kept = ([], []), ([], [])
    for run, (planner, world) in enumerate(zip(planners, worlds, strict=True)):
        for _ in range(5):
            plans = one_step(planner, IDS, world)
            seen[run].extend(plans)
            kept[run].extend(copy.deepcopy(plans))
    common = [[p for p in plans if (p.step, p.round) <= fork] for plans in seen]
    assert len(common[0]) == len(common[1]) >= 3
    for one, other in zip(*common, strict=True):
        np.testing.assert_array_equal(one.counts, other.counts)
        assert (one.posterior is None) == (other.posterior is None)
        if one.posterior is not None:
            np.testing.assert_array_equal(one.posterior.mean, other.posterior.mean)
    for plans, copies in zip(seen, kept, strict=True):
        for plan, at_the_time in zip(plans, copies, strict=True):
            np.testing.assert_array_equal(plan.counts, at_the_time.counts)


def recorded(planner, world, path, steps=3):
    """What was called with what and gave which plan; the planner is saved before every call."""
    calls = []

    def call(do, *args, **kwargs):
        planner.save(path / f"{len(calls)}")
        result = getattr(planner, do)(*args, **kwargs)
        calls.append((do, args, kwargs, result))
        return result

    for _ in range(steps):
        while True:
            plan = call("ask", IDS)
            told = world.answer(plan)
            half = plan.budget // 2
            call("tell", plan, **rows(told, range(half)), final=False)
            call("tell", plan, **rows(told, range(half, plan.budget)))
            if planner.done:
                break
    return calls


@every_planner
def test_a_planner_restored_at_any_time_goes_on_bit_for_bit(name, tmp_path):
    """Between steps, between rounds, with a plan open, with a plan partly told."""
    planner = CASES[name].make()
    calls = recorded(planner, World(), tmp_path)
    for at in range(0, len(calls), max(len(calls) // 12, 1)):
        restored = CASES[name].make().load(tmp_path / f"{at}")
        for do, args, kwargs, result in calls[at:]:
            again = getattr(restored, do)(*args, **kwargs)
            if do == "ask":
                assert (again.prompt_ids, again.step, again.round) == (result.prompt_ids, result.step, result.round)
                np.testing.assert_array_equal(again.counts, result.counts)
        assert_same(restored.state_dict(), planner.state_dict())


@every_planner
def test_a_budget_from_numpy_can_be_saved(name, tmp_path):
    """With a round told and the next one due, where there are rounds."""
    case = CASES[name]
    planner = case.make()
    plan = planner.ask(IDS, budget=np.int64(case.budget))
    planner.tell(plan, **World().answer(plan))
    planner.save(tmp_path / "planner")
    assert_same(case.make().load(tmp_path / "planner").state_dict(), planner.state_dict())


@every_planner
def test_rollouts_that_do_not_come_back_are_counted(name):
    """A reward lost in every round, then a whole group: the planner goes on, and says how many are missing."""
    case, world, lost = CASES[name], World(), 0
    planner = case.make()
    for step in range(4):
        while True:
            plan = planner.ask(IDS)
            told = world.answer(plan)
            first = next((i for i, n in enumerate(plan.counts) if n), 0)
            gone = [0] if step % 2 else list(range(int(plan.counts[first])))
            gone = gone[: plan.budget]
            planner.tell(
                plan, **rows(told, [i for i in range(plan.budget) if i not in gone]), allow_missing_groups=True
            )
            lost += len(gone)
            assert planner.missing_rollouts == lost
            if planner.done:
                break
    check_step(case, one_step(planner, IDS, world))


@every_planner
def test_a_missing_group_is_refused_unless_allowed(name):
    planner, world = CASES[name].make(), World()
    plan = planner.ask(IDS)
    told = world.answer(plan)
    gone = plan.prompt_ids[int(np.argmax(plan.counts > 0))]
    rest = rows(told, [i for i, group in enumerate(told["group_ids"]) if group != gone])
    before = snapshot(planner)
    with pytest.raises(RewardMismatchError, match="missing"):
        planner.tell(plan, **rest)
    assert_same(snapshot(planner), before)
    planner.tell(plan, **rest, allow_missing_groups=True)


@every_planner
def test_a_cancelled_plan_leaves_the_planner_usable(name):
    case, world = CASES[name], World()
    planner = case.make()
    one_step(planner, IDS, world)
    planner.cancel(planner.ask(IDS))
    assert planner.done
    assert not planner.open_plans
    check_step(case, one_step(planner, IDS, world))


class Spy:
    """The planner, and every plan it hands out."""

    def __init__(self, planner):
        self.planner, self.plans = planner, []

    def __getattr__(self, name):
        return getattr(self.planner, name)

    def ask(self, ids):
        self.plans.append(self.planner.ask(ids))
        return self.plans[-1]


@every_new_planner
def test_cost_in_generated_and_in_trained_rollouts(name):
    """Both are counted by prompt; a method that trains on all it generates has no difference between them."""
    case, p_Q = CASES[name], np.linspace(0.05, 0.95, len(IDS))
    spy = Spy(case.make())
    toy = Toy(Policy.of(p_Q), spy)
    for _ in range(5):
        spy.plans.clear()
        step = toy.step()
        generated = total_counts(spy.plans)
        assert step.generated_Q.tolist() == [generated[i] for i in range(len(p_Q))]
        assert (step.trained_Q <= step.generated_Q).all()
        if case.trains_on_all:
            np.testing.assert_array_equal(step.trained_Q, step.generated_Q)
        assert np.isfinite(step.gradient_QA).all()
