"""Every planner, selector and objective by name, and a planner of a user's own: carried out, or refused by name."""

from pathlib import Path

import numpy as np
import pytest
from verl_cases import KEYS, MEAN, PROMPTS, advantages_of, config_of, names, session_of

from allotment.errors import ConfigError
from allotment.integrations.capabilities import VERL
from allotment.integrations.verl import running
from allotment.methods.selectors.completion_pruning import CompletionPruning
from allotment.planning.contract import entry_obstacle, selection_obstacle, works_with
from allotment.planning.making import parameters
from allotment.registry import OBJECTIVES, PLANNERS, SELECTORS

HOOK = "+allotment.trainer_hook=true"
TOY = "+allotment.planner='verl_cases:Toy'"
ASYNC = "trainer.v1.trainer_mode=colocate_async"
WORKS = works_with(VERL)


def planned(session, step: int = 1, keys=KEYS) -> tuple[list[str], np.ndarray]:
    """The uid of every rollout of a batch, shuffled; and [Q] the counts."""
    uids = names(step, len(keys))
    counts = np.array(session.plan(uids, keys, step))
    rows = np.repeat(uids, counts)
    return list(np.random.default_rng(step).permutation(rows)), counts


def rewards_of(uids, *, seed: int = 0) -> np.ndarray:
    """Successes, more of them for later prompts; none of the first and all of the last."""
    place = np.array([int(uid.rsplit("-", 1)[1]) for uid in uids])
    return (np.random.default_rng(seed).random(len(uids)) < place / (PROMPTS - 1)).astype(float)


def by_hand(rewards, uids, within) -> np.ndarray:
    """[N] ``within`` of a group's rewards, times mean(n) / n."""
    result, uids = np.zeros(len(rewards)), np.asarray(uids)
    for uid in set(uids):
        own = np.flatnonzero(uids == uid)
        result[own] = within(rewards[own]) * len(uids) / (len(set(uids)) * len(own))
    return result


def rloo(rewards_n) -> np.ndarray:
    n = len(rewards_n)
    return np.array([r - (rewards_n.sum() - r) / (n - 1) for r in rewards_n])


def dr_grpo(rewards_n) -> np.ndarray:
    return rewards_n - rewards_n.mean()


def grpo(rewards_n) -> np.ndarray:
    return (rewards_n - rewards_n.mean()) / (rewards_n.std(ddof=1) + 1e-4)


def over_root_of_mean(rewards_n) -> np.ndarray:
    """Reinforce-Ada's, every rollout alike: n over the mean size undoes the mean size over n."""
    mean = rewards_n.mean()
    return (rewards_n - mean) / np.sqrt(mean + 0.01) * len(rewards_n) / MEAN


WITHIN = {"reinforce-ada-est": over_root_of_mean}
"""The advantages of planners with a selection of their own."""


def assert_names_what_works(error, name: str, works) -> None:
    text = str(error.value)
    for word in (name, *works, "got:", "allowed:", "fix:"):
        assert word in text


@pytest.mark.parametrize("name", PLANNERS.names)
def test_every_planner_is_carried_out_or_refused(name, tmp_path, monkeypatch) -> None:
    if (reason := entry_obstacle(PLANNERS[name], VERL)) is not None:
        with pytest.raises(ConfigError) as error:
            session_of(tmp_path, f"+allotment.planner={name}")
        assert_names_what_works(error, name, (*WORKS, reason))
        return
    contract, seen = PLANNERS[name].contract, []
    takes = "trained_prompts" in parameters(PLANNERS[name].make)
    asked = ["+allotment.trained_prompts=6"] if takes and contract.leaves_out else []
    session, plans = session_of(tmp_path, f"+allotment.planner={name}", *asked), []
    ask = session.planner.ask
    monkeypatch.setattr(session.planner, "ask", lambda *a, **k: plans.append(ask(*a, **k)) or plans[-1])
    for step in range(1, 6):
        uids, counts = planned(session, step)
        assert counts.sum() == PROMPTS * MEAN
        assert (counts > 0).sum() == (6 if asked else PROMPTS) or (contract.leaves_out and not takes)
        rewards = rewards_of(uids, seed=step)
        expected = by_hand(rewards, uids, WITHIN.get(name, rloo))
        if contract.baselines:
            expected = all_believed(plans[-1], uids, names(step), rewards, is_white=name == "spo")
        np.testing.assert_allclose(advantages_of(session, uids, rewards, monkeypatch), expected, atol=1e-6)
        assert not session.planner.open_plans
        seen.append(counts)
    is_equal = [len(set(counts)) == 1 for counts in seen]
    assert all(is_equal) if name in ("uniform", "spo") else not any(is_equal[1:])  # the others go by what came back


@pytest.mark.parametrize("name", SELECTORS.names)
def test_every_selector_is_carried_out_or_refused(name, tmp_path, monkeypatch) -> None:
    settings = ["+allotment.planner=uniform", f"+allotment.select={name}"]
    if (reason := selection_obstacle(SELECTORS[name].needs, VERL)) is not None:
        works = [other for other, entry in SELECTORS if selection_obstacle(entry.needs, VERL) is None]
        with pytest.raises(ConfigError) as error:
            session_of(tmp_path, *settings)
        assert_names_what_works(error, name, (*works, reason))
        return
    session = session_of(tmp_path, *settings)
    uids, _ = planned(session)
    rewards = np.random.default_rng(0).random(len(uids))
    advantages = advantages_of(session, uids, rewards, monkeypatch)
    for uid in set(uids):
        own = np.asarray(uids) == uid
        kept = advantages[own] != 0
        if isinstance(SELECTORS[name].make(), CompletionPruning):
            whole = rloo(rewards[own])
            low = abs(whole) < abs(whole).mean()
            np.testing.assert_allclose(advantages[own], whole * kept * np.where(low, 2.0, 1.0), atol=1e-6)
            assert kept[~low].all()
        else:
            assert kept.sum() == 2  # a quarter, which stands for the whole group
            np.testing.assert_allclose(advantages[own][kept], rloo(rewards[own][kept]) * MEAN / 2, atol=1e-6)
    assert 0 < (advantages != 0).mean() < 1


@pytest.mark.parametrize("name", [*OBJECTIVES.names, "no-such-objective"])
def test_every_objective_is_carried_out_or_refused(name, tmp_path, monkeypatch) -> None:
    setting = f"algorithm.adv_estimator=allotment_{name}"
    if name not in VERL.objectives:
        with pytest.raises(ConfigError) as error:
            session_of(tmp_path, setting, HOOK)
        assert_names_what_works(error, name, VERL.objectives)
        return
    session = session_of(tmp_path, setting)
    uids, _ = planned(session)
    rewards = rewards_of(uids)
    within = {"rloo": rloo, "dr_grpo": dr_grpo, "grpo": grpo}[name]
    advantages = advantages_of(session, uids, rewards, monkeypatch, name)
    np.testing.assert_allclose(advantages, by_hand(rewards, uids, within), atol=1e-5)


def test_the_page_names_what_works() -> None:
    page = (Path(__file__).parents[3] / "docs" / "verl.md").read_text()
    selectors = (name for name, entry in SELECTORS if selection_obstacle(entry.needs, VERL) is None)
    rows = {
        name: next(line for line in page.splitlines() if line.startswith(f"| `{name}`"))
        for name in ("planner", "select")
    }
    assert all(f"`{name}`" in rows["planner"] for name in WORKS)
    assert all(f"`{name}`" in rows["select"] for name in selectors)


def all_believed(plan, uids, every_uid, rewards, is_white: bool) -> np.ndarray:
    """[N] advantages against the plan's baselines, over the batch's standard deviation if ``is_white``."""
    raw, sizes = np.zeros(len(uids)), np.zeros(len(uids))
    for row, uid in enumerate(every_uid):
        own = np.asarray(uids) == uid
        sizes[own] = own.sum()
        if own.any():
            raw[own] = believed(plan, KEYS[row], rewards[own], 1, 1) * own.sum()
    if is_white:
        raw = (raw - raw.mean()) / raw.std(ddof=1)
    return raw * len(uids) / (len(set(uids)) * sizes)


def believed(plan, prompt: str, rewards_n, rollouts: int, prompts: int) -> np.ndarray:
    """[n] the toy's advantages of a prompt: weighed against the mean over all candidates of its plan."""
    q, n = plan.prompt_ids.index(prompt), len(rewards_n)
    groups = int((plan.counts > 0).sum())
    factor = 1.0 if plan.weights is None else plan.weights[q] * groups / (plan.candidates or len(plan.prompt_ids))
    own = np.zeros(n)
    for i, reward in enumerate(rewards_n):
        others = [other for j, other in enumerate(rewards_n) if j != i]
        share = 1.0 if not others or plan.baseline_shares is None else plan.baseline_shares[q]
        own[i] = reward - share * plan.baselines[q] - (0.0 if not others else (1 - share) * np.mean(others))
    return own * rollouts / (prompts * n) * factor


@pytest.mark.parametrize("keys", [KEYS, KEYS[:12] + KEYS[:4]], ids=["distinct", "some twice"])
def test_weights_and_baselines_of_each_plan_are_in_the_advantages(keys, tmp_path, monkeypatch) -> None:
    """A prompt that stands twice is planned for twice: two plans in one batch."""
    session, plans = session_of(tmp_path, TOY), []
    ask = session.planner.ask
    monkeypatch.setattr(session.planner, "ask", lambda *a, **k: plans.append(ask(*a, **k)) or plans[-1])
    uids, counts = planned(session, keys=keys)
    plans = [plan for plan in plans if any(plan.step == kept.step for kept in session.planner.open_plans)]
    assert len(plans) == (1 if keys == KEYS else 2)
    assert {0, 1} < set(counts)
    rewards = rewards_of(uids)
    advantages = advantages_of(session, uids, rewards, monkeypatch)
    for row, uid in enumerate(names(1)):
        own = np.asarray(uids) == uid
        assert own.sum() == counts[row]
        if counts[row]:
            plan = plans[keys[:row].count(keys[row])]
            expected = believed(plan, keys[row], rewards[own], len(uids), len(set(uids)))
            np.testing.assert_allclose(advantages[own], expected, atol=1e-6)
    assert not session.planner.open_plans


def test_the_hook_tells_before_and_the_advantages_are_the_same(tmp_path, monkeypatch) -> None:
    found = []
    for hook in (False, True):
        session = session_of(tmp_path, TOY, "+allotment.select=pods", "+allotment.select_kwargs.keep=4")
        uids, _ = planned(session)
        if hook:
            session.tell(uids, rewards_of(uids), [3] * len(uids))
        found.append(advantages_of(session, uids, rewards_of(uids), monkeypatch))
    np.testing.assert_array_equal(*found)
    assert (found[0] != 0).any()


def test_a_run_is_started_with_its_selector_and_restored_with_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(running, "_current", None)
    own = [f"trainer.default_local_dir={tmp_path}", "+allotment.select=random", "+allotment.select_kwargs.seed=3"]
    first = running.start_session(config_of(*own))
    uids, _ = planned(first)
    found = [advantages_of(first, uids, rewards_of(uids), monkeypatch)]
    (tmp_path / "global_step_1").mkdir()
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("1")
    first.save(tmp_path / "global_step_1")
    for session in (first, running.start_session(config_of(*own))):
        uids, _ = planned(session, 2)
        found.append(advantages_of(session, uids, rewards_of(uids), monkeypatch))
    assert (found[0] == 0).mean() > 0.5
    np.testing.assert_array_equal(found[1], found[2])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ([TOY], ("Toy", "weights", "grpo", "allotment_rloo")),
        (
            [TOY, "+allotment.planner_kwargs.weights=false", "+allotment.planner_kwargs.leaves_out=false"],
            ("Toy", "baselines", "allotment_rloo"),
        ),
        (["+allotment.planner=reinforce-ada-est"], ("reinforce-ada-est", "selection", "allotment_rloo")),
        (["+allotment.select=pods"], ("pods", "selection", "allotment_rloo")),
    ],
)
def test_verls_own_estimators_carry_out_counts_alone(settings, words, tmp_path) -> None:
    stock = ["algorithm.adv_estimator=grpo", HOOK]
    assert session_of(tmp_path, *stock, "+allotment.planner=mopps").planner.contract.leaves_out
    with pytest.raises(ConfigError) as error:
        session_of(tmp_path, *stock, *settings)
    assert_names_what_works(error, words[0], words)


@pytest.mark.parametrize("name", ["joint", "spo"])
def test_a_planner_that_draws_prompts_says_itself_how_many(name, tmp_path) -> None:
    with pytest.raises(ConfigError, match="leave allotment"):
        session_of(tmp_path, f"+allotment.planner={name}", "+allotment.trained_prompts=6")


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean"])
def test_a_belief_beside_a_divisor_that_depends_on_the_rollout_is_refused(mode, tmp_path) -> None:
    setting = f"actor_rollout_ref.actor.loss_agg_mode={mode}"
    session_of(tmp_path, setting)
    with pytest.raises(ConfigError) as error:
        session_of(tmp_path, setting, "+allotment.planner=joint")
    assert_names_what_works(error, "joint", (mode, "baselines", "seq-mean-token-sum"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ([TOY], ("Toy", "no rollouts")),
        ([TOY, "+allotment.planner_kwargs.leaves_out=false"], ("Toy", "weights")),
        (["+allotment.planner=mopps"], ("mopps", "no rollouts")),
        (["+allotment.planner=reinforce-ada-est"], ("reinforce-ada-est", "selection")),
        (["+allotment.select=random"], ("random", "selection")),
    ],
)
def test_asynchronous_trainers_carry_out_what_pieces_of_a_batch_allow(settings, words, tmp_path) -> None:
    with pytest.raises(ConfigError) as error:
        session_of(tmp_path, ASYNC, HOOK, *settings)
    assert_names_what_works(error, words[0], (*words, "asynchronous", "allotment_sync", "vip"))


def test_baselines_outlive_a_checkpoint(tmp_path, monkeypatch) -> None:
    """An asynchronous plan is open when the run is saved; what comes back later has its baselines."""
    own = [f"+allotment.planner_kwargs.{name}=false" for name in ("weights", "leaves_out")]
    session = session_of(tmp_path, ASYNC, HOOK, TOY, *own)
    uids, _ = planned(session)
    session.save(tmp_path)
    resumed = session_of(tmp_path, ASYNC, HOOK, TOY, *own)
    resumed.load(tmp_path)
    found = [advantages_of(s, uids, rewards_of(uids), monkeypatch) for s in (session, resumed)]
    np.testing.assert_array_equal(*found)
    assert (found[0] != by_hand(rewards_of(uids), uids, rloo)).mean() > 0.5


def test_a_selection_would_see_the_penalty(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"use_kl_in_reward cannot carry out the selector 'pods'"):
        session_of(tmp_path, "algorithm.use_kl_in_reward=true", HOOK, "+allotment.select=pods")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["+allotment.planner=reinforce-ada-est", "+allotment.select=pods"], "a planner that selects itself"),
        (["+allotment.select=pods", "+allotment.select_kwargs.kept=4"], "cannot be made with these settings"),
        (["+allotment.select=podz"], "did you mean 'pods'"),
        (["+allotment.select_kwargs.keep=4"], "settings of a selector, and none is chosen"),
    ],
)
def test_selectors_that_do_not_fit_are_refused(settings, words, tmp_path) -> None:
    with pytest.raises(ConfigError, match=words):
        session_of(tmp_path, *settings)


def test_lengths_are_told_to_a_planner_that_asks_for_them(tmp_path, monkeypatch) -> None:
    session, told = session_of(tmp_path, TOY, "+allotment.planner_kwargs.told=[lengths]"), []
    monkeypatch.setattr(session.planner, "_observe", told.append)
    uids, counts = planned(session)
    session.tell(uids, rewards_of(uids), [0] + [3] * (len(uids) - 1))
    assert len(told[0].lengths_N) == counts.sum()
    assert set(told[0].lengths_N) == {1, 3}
