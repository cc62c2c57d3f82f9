"""OptPO (arXiv 2512.02882): votes until a lead, the errors of that test, and no look at the rewards."""

import itertools
from collections import Counter

import numpy as np
import pytest
from planning_cases import assert_same, snapshot

from allotment.errors import InfeasibleBudgetError, InvalidInputError, RewardMismatchError, StateError
from allotment.methods.planners.optpo import OptPO, Tally, is_sure
from theory.toy import Policy, measured_weights


def play(planner, answers, rewards=0.0):
    """One step in which prompt i's rollouts answer ``answers[i]`` in that order; how many each was asked for."""
    ids, used = list(range(len(answers))), np.zeros(len(answers), dtype=np.int64)
    while True:
        plan = planner.ask(ids)
        told = [a for i in ids for a in answers[i][used[i] : used[i] + plan.counts[i]]]
        planner.tell(plan, np.full(len(told), rewards), plan.group_ids(), answers=told)
        used += plan.counts
        if planner.done:
            return used


def votes(rng, prompts, m, p0, most):
    """[prompts, most] votes: "0" is the consensus, the other m - 1 answers are equally likely."""
    wrong = rng.integers(1, m, (prompts, most))
    return np.where(rng.random((prompts, most)) < p0, 0, wrong).astype(str).tolist()


def stopped(m, p0, threshold, most, prompts=1000, seed=0, **settings):
    """Votes used [Q], counts of each prompt's leading answers [Q], whether the lead ended it [Q], the leaders [Q]."""
    planner = OptPO(budget=prompts * most, bounds=(2, 64), threshold=threshold, p0=p0, classes=m, **settings)
    answers = votes(np.random.default_rng(seed), prompts, m, p0, most)
    used_Q = play(planner, answers)
    counts = [Counter(a[:n]).most_common(2) for a, n in zip(answers, used_Q, strict=True)]
    tally = Tally.of(
        [v for a, n in zip(answers, used_Q, strict=True) for v in a[:n]], np.repeat(np.arange(prompts), used_Q), prompts
    )
    sure_Q = is_sure(tally, p0, threshold, m, settings.get("evidence", "bayes_factor"))
    return used_Q, [c[0][1] for c in counts], sure_Q, np.array([c[0][0] for c in counts])


def near(found, expected, extra):
    """Within four standard errors of the mean, and the rounding of the printed figure."""
    assert np.mean(found) == pytest.approx(expected, abs=4 * np.std(found) / np.sqrt(len(found)) + extra)


@pytest.mark.parametrize(
    ("m", "p0", "threshold", "lead", "error", "cost", "most"),
    [
        (2, 0.6, 19, 8, 0.039, 33.9, 64),
        (4, 0.5, 19, 3, 0.064, 10.7, 64),
        (4, 0.5, 99, 5, 0.007, 18.7, 64),
        (8, 0.4, 99, 3, 0.025, 13.6, 64),
        (4, 0.7, 19, 2, 0.044, 3.7, 32),
    ],
)
def test_stopping_error(m, p0, threshold, lead, error, cost, most):
    """Lead, error given a stop, mean votes: known values; below (m - 1) / A."""
    rho = p0 * (m - 1) / (1 - p0)
    assert np.ceil(np.log(threshold) / np.log(rho)) == lead
    used_Q, _, sure_Q, leader_Q = stopped(m, p0, threshold, most)
    assert sure_Q[used_Q < most].all()
    near(leader_Q[sure_Q] != "0", error, 5e-4)
    near(used_Q, cost, 0.05)
    assert (sure_Q & (leader_Q != "0")).mean() <= (m - 1) / threshold


@pytest.mark.parametrize(("m", "p0"), [(4, 0.5), (3, 0.6)])
def test_the_posterior_keeps_its_word(m, p0):
    """Of those stopped at odds of 19, at most one in twenty has a wrong leader; it stops later."""
    used_Q, _, sure_Q, leader_Q = stopped(m, p0, 19, 64, evidence="posterior")
    wrong_Q = leader_Q[sure_Q] != "0"
    assert wrong_Q.mean() <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / len(wrong_Q))
    assert used_Q.mean() > stopped(m, p0, 19, 64)[0].mean()


def test_a_p0_near_one_in_m_rarely_stops_and_errs_like_a_plain_majority():
    """With m = 4, p0 = 0.3: 4.5 percent stop by 64, error 39 percent (ties count by who came first)."""
    used_Q, _, sure_Q, leader_Q = stopped(4, 0.3, 19, 64, prompts=500)
    near(sure_Q, 0.045, 5e-4)
    near(leader_Q != "0", 0.39, 0.005)
    answers = votes(np.random.default_rng(0), 500, 4, 0.3, 64)
    plain = np.array([Counter(a).most_common(1)[0][0] for a in answers])
    np.testing.assert_array_equal(leader_Q[used_Q == 64], plain[used_Q == 64])


def test_stopping_biases_the_share_of_the_votes():
    """At a lead of 3 the consensus has 0.62 of the votes, not 0.5; 13.6 percent are unanimous."""
    used_Q, first_Q, _, _ = stopped(4, 0.5, 19, 64, prompts=2000)
    near(np.array(first_Q) / used_Q, 0.62, 0.01)
    near(used_Q == np.array(first_Q), 0.136, 5e-4)


def test_the_first_votes_are_not_biased():
    """``retained="first"``: N of each prompt are trained on, drawn before anything was decided."""
    planner = OptPO(budget=8 * 32, bounds=(4, 64), p0=0.5, classes=4, retained="first")
    assert planner.selector.retained == 4
    answers = votes(np.random.default_rng(1), 2000, 4, 0.5, 32)
    assert play(OptPO(budget=2000 * 32, bounds=(4, 64), p0=0.5, classes=4), answers).min() == 4
    near([a[:4].count("0") / 4 for a in answers], 0.5, 0)


@pytest.mark.parametrize(
    ("given", "stops"),
    [
        ("AA", False),  # m is 2: a lead of 4 is needed
        ("AAAA", True),
        ("AAAAB", True),  # m is 3: a lead of 2 or more
        ("AAB", False),
        ("ABAA", True),
        ("ABC" + "A" * 2, True),
        ("?AAA", False),
        ("?AAAA", True),
        ("????", False),
    ],
)
def test_the_number_of_classes_is_what_was_seen_and_one_more(given, stops):
    """At p0 = 0.7 and odds 19: rho is 7/3, 14/3, 7 for m = 2, 3, 4. An answer that cannot be read is no class."""
    answers = [None if a == "?" else a for a in given]
    tally = Tally.of(answers, np.zeros(len(answers), dtype=np.int64), 1)
    assert is_sure(tally, 0.7, 19, None, "bayes_factor").tolist() == [stops]


def test_the_bayes_factor_is_a_ratio_of_likelihoods_and_the_posterior_their_share():
    rng = np.random.default_rng(3)
    for _ in range(200):
        m, p0 = int(rng.integers(2, 6)), 0.7
        answers = rng.integers(0, m, rng.integers(1, 9)).astype(str).tolist()
        counts = [answers.count(str(c)) for c in range(m)]
        likelihood = sorted((p0**v * ((1 - p0) / (m - 1)) ** (len(answers) - v) for v in counts), reverse=True)
        tally = Tally.of(answers, np.zeros(len(answers), dtype=np.int64), 1)
        for evidence, odds in [
            ("bayes_factor", likelihood[0] / likelihood[1]),
            ("posterior", likelihood[0] / sum(likelihood[1:])),
        ]:
            for factor in (0.999, 1.001):
                assert is_sure(tally, p0, odds * factor, m, evidence)[0] == (factor < 1)


def test_rounds_most_and_least():
    """N = 3 first, then 2 at a time up to M = C // Q; one prompt stops at once, one later, one never, one cannot."""
    planner = OptPO(budget=44, bounds=(3, 64), threshold=19, p0=0.7, classes=4, votes=2)
    answers = [["A"] * 11, ["A", "B", "A", "B", "A", "A", "A"] + ["B"] * 4, ["A", "B"] * 6, [None] * 11]
    assert play(planner, answers).tolist() == [3, 7, 11, 11]
    assert play(OptPO(budget=44, p0=0.7, classes=4, votes=5), answers).tolist() == [5, 11, 11, 11]


@pytest.mark.parametrize("votes_", [1, 3])
def test_rewards_are_never_used(votes_):
    answers = votes(np.random.default_rng(2), 40, 3, 0.6, 16)
    planners = [OptPO(budget=640, votes=votes_) for _ in range(2)]
    used = [play(planner, answers, reward) for planner, reward in zip(planners, (0.0, 1.0), strict=True)]
    np.testing.assert_array_equal(*used)
    assert 3 * 40 < used[0].sum() < 640


@pytest.mark.parametrize("permutation", [{"0": "b", "1": "a", "2": "0"}, {"0": "2", "1": "0", "2": "1"}])
def test_names_of_answers_and_the_order_of_counted_votes_do_not_matter(permutation):
    """Round for round the same counts."""
    rng = np.random.default_rng(4)
    answers = votes(rng, 40, 3, 0.6, 16)
    renamed = [[permutation[a] for a in row] for row in answers]
    plain, other = OptPO(budget=640), OptPO(budget=640)
    np.testing.assert_array_equal(play(plain, answers), play(other, renamed))
    plan, again = plain.ask(range(40)), other.ask(range(40))
    told = [a for row in answers for a in row[:3]]
    order = rng.permutation(120)
    groups = plan.group_ids()
    plain.tell(plan, np.zeros(120), groups, answers=told)
    other.tell(again, np.zeros(120), [groups[i] for i in order], answers=[told[i] for i in order])
    np.testing.assert_array_equal(plain.ask(range(40)).counts, other.ask(range(40)).counts)


def expected_weight(p, n):
    """The weight of grad p with n votes for everybody: over all sequences of answers, projected on grad p."""
    policy = Policy.of([p])
    chances_A, truth_A = policy.chances_QA[0], policy.gradients()[0]
    total = 0.0
    for sequence in itertools.product(range(len(chances_A)), repeat=n):
        leader = Counter(sequence).most_common(1)[0][0]
        rewards = np.array(sequence) == leader
        advantages = (rewards - rewards.mean()) * n / (n - 1)
        gradient = ((np.eye(len(chances_A)) - chances_A)[list(sequence)] * advantages[:, None]).mean(0)
        total += np.prod(chances_A[list(sequence)]) * (gradient @ truth_A) / (truth_A @ truth_A)
    return total


def test_measured_weight():
    """What is optimised without stopping: the modal answer, so hard prompts are pushed away from the right one."""
    grid = np.array([0.1, 0.3, 0.6, 0.9])
    expected_P = np.array([expected_weight(p, 5) for p in grid])

    def planner(seed):
        return OptPO(budget=5 * 4 * 40, bounds=(2, 5), threshold=1e9, seed=seed)

    measured = measured_weights(planner, grid, steps=3, warm_up=0, runs=30, copies=40)
    np.testing.assert_array_less(np.abs(measured.weights_P - expected_P), 4 * measured.errors_P)
    np.testing.assert_array_equal(measured.generated_P, 5)
    assert expected_P[0] < -0.3 < 0.5 < expected_P[2] < expected_P[3] < 1


def test_without_answers_nothing_is_recorded():
    planner = OptPO(budget=64)
    plan = planner.ask([0, 1, 2, 3])
    before = snapshot(planner)
    with pytest.raises(InvalidInputError, match=r"told no answers(.|\n)*answers="):
        planner.tell(plan, np.zeros(12), plan.group_ids())
    assert_same(snapshot(planner), before)
    planner.tell(plan, np.zeros(12), plan.group_ids(), answers=["A"] * 12)
    assert planner.ask([0, 1, 2, 3]).counts.tolist() == [1, 1, 1, 1]
    with pytest.raises(RewardMismatchError, match="middle of a step"):
        planner.ask([0, 1, 2, 3])


def test_a_step_goes_on_where_it_was_saved(tmp_path):
    planner = OptPO(budget=64)
    plan = planner.ask(["a", "b"], budget=10)
    planner.tell(plan, np.zeros(6), plan.group_ids(), answers=["x", None, "y", "x", "x", "x"])
    planner.save(tmp_path / "state")
    restored = OptPO(budget=64).load(tmp_path / "state")
    for one in (planner, restored):
        for counts, told in [([1, 1], ["x", "x"]), ([1, 0], ["y"])]:
            plan = one.ask(["a", "b"])
            assert plan.counts.tolist() == counts
            one.tell(plan, np.zeros(sum(counts)), plan.group_ids(), answers=told)
        assert one.done  # two votes each, and the five of this step's budget are spent
    assert_same(restored.state_dict(), planner.state_dict())
    for other in ({"p0": 0.8}, {"threshold": 9.0}, {"classes": 4}, {"votes": 2}, {"evidence": "posterior"}):
        with pytest.raises(StateError, match="settings"):
            OptPO(budget=64, **other).load(tmp_path / "state")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"threshold": 1.0}, "threshold"),
        ({"p0": 0.5}, "above 1/m = 0.5"),
        ({"p0": 0.25, "classes": 4}, "above 1/m = 0.25"),
        ({"classes": 1}, "classes"),
        ({"votes": 0}, "votes"),
        ({"evidence": "odds"}, "bayes_factor, posterior"),
        ({"retained": "last"}, "all, first"),
    ],
)
def test_settings_refused(settings, text):
    with pytest.raises(InvalidInputError, match=text):
        OptPO(budget=64, **settings)


@pytest.mark.parametrize(("budget", "text"), [(8, "sum of the lower"), (260, "sum of the upper")])
def test_a_budget_that_contradicts_the_batch(budget, text):
    with pytest.raises(InfeasibleBudgetError, match=text):
        OptPO(budget=64).ask([0, 1, 2, 3], budget=budget)
