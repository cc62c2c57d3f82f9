"""What the health checks say of sound and of damaged logs."""

from itertools import count

import pytest
from report_rows import evaluation, group

from allotment.report.data import read_study
from allotment.report.health import health

STEPS = 8


def metrics(steps=range(STEPS + 1), **more):
    return [evaluation(step, 0.5, 0.4, **more) for step in steps]


def rows(steps=range(1, STEPS + 1), *, n=(12, 4), predicted=0.5, share=0.5):
    return [group(each, round(each * share), predicted, step, f"q{q}") for step in steps for q, each in enumerate(n)]


@pytest.fixture
def check(write_run):
    """Runs the checks on one run of 2 prompts and 16 rollouts a step; verdict and words by title."""

    number = count()

    def run(**contents):
        given = {"metrics": metrics(), "rollouts": rows(), "seconds": [0.1] * STEPS} | contents
        settings = {"steps": STEPS, "prompts_per_step": 2, "rollouts_per_prompt": 8} | given
        found = health(read_study([write_run(f"run-{next(number)}", **settings)]))
        return {each.title: (each.verdict, each.findings[0].words) for each in found}

    return run


def test_a_sound_run_passes_everything(check):
    assert {title: verdict for title, (verdict, _) in check().items()} == dict.fromkeys(check_titles(), "good")


def check_titles():
    return [
        "Logs complete",
        "Resumed or not",
        "Budget conserved",
        "Counts within their bounds",
        "Predictions calibrated",
        "Predictions keep up with the policy",
        "Groups with signal",
        "Steps of even time",
    ]


@pytest.mark.parametrize(
    ("contents", "title", "words"),
    [
        ({"metrics": metrics([0, 1, 2, 4, 5, 6, 7, 8])}, "Logs complete", "lacks 1 steps and repeats 0"),
        ({"metrics": [*metrics(), *metrics([8])]}, "Logs complete", "lacks 0 steps and repeats 1"),
        ({"rollouts": rows(range(1, STEPS))}, "Logs complete", "differ in 1 steps"),
        ({"metrics": metrics(range(6)), "rollouts": rows(range(1, 6))}, "Logs complete", "stopped after 5 of 8 steps"),
        ({"rollouts": [*rows(), group(3, 1, 0.5, 8, "q9")]}, "Budget conserved", "1 of 8 steps spent 16 to 19"),
        ({"rollouts": rows(n=(14, 2))}, "Counts within their bounds", "2 to 14 rollouts a prompt and step; 3 to 32"),
        ({"rollouts": rows(predicted=0.9)}, "Predictions calibrated", "0.400 from the diagonal"),
        ({"rollouts": rows(predicted=0.9)}, "Predictions keep up with the policy", "(−0.400)"),
        ({"metrics": metrics(zero_variance_groups=0.7)}, "Groups with signal", "70% of the groups"),
        ({"seconds": [0.1] * 7 + [9.0]}, "Steps of even time", "step 8 of seed 0 took 9.0 s, the median 0.10 s"),
    ],
)
def test_what_is_wrong_is_named(check, contents, title, words):
    verdict, found = check(**contents)[title]
    assert verdict == "look"
    assert words in found


def test_groups_of_equal_rewards_teach_where_they_are_compared_with_a_belief(check):
    verdict, words = check(metrics=metrics(zero_variance_groups=0.98), planner="joint")["Groups with signal"]
    assert verdict == "good"
    assert words == "98% of the groups were all right or all wrong; compared with a belief, they teach too."


def test_a_run_that_only_lately_falls_behind_has_drifted(check):
    late = [*rows(range(1, 7)), *rows([7, 8], share=0.75)]
    verdict, words = check(rollouts=late)["Predictions keep up with the policy"]
    assert verdict == "look"
    assert "from 0.500 in the first quarter of the steps to 0.750 in the last, where 0.500 was predicted" in words


def test_rollouts_without_a_reward_are_spent_too(check):
    unscored = [*metrics(range(STEPS)), evaluation(8, 0.5, 0.4, unscored=4)]
    assert check(metrics=unscored, rollouts=[*rows(range(1, 8)), *rows([8], n=(12,))])["Budget conserved"][0] == "good"


def test_equal_counts_are_one_number(check):
    assert check(rollouts=rows(n=(8, 8)))["Counts within their bounds"][1].startswith("8 rollouts a prompt and step; ")


def test_a_resumed_run_is_no_worse_and_said(check):
    verdict, words = check(resumed=(2, 2, 6))["Resumed or not"]
    assert verdict == "good"
    assert words.startswith("taken up again from a checkpoint: seed 0 after steps 2, 2, 6. ")
    assert "seed 0 after step 4." in check(resumed=(4,))["Resumed or not"][1]
    assert check()["Resumed or not"][1] == "no run was taken up again from a checkpoint."


def test_what_logs_do_not_tell_is_not_known(check):
    found = check(rollouts=[], seconds=[], planner="vip-tokens")
    unknown = {title for title, (verdict, _) in found.items() if verdict == "unknown"}
    assert unknown == set(check_titles()) - {"Logs complete", "Groups with signal"}
    assert "its budget is of tokens" in check(planner="vip-tokens")["Budget conserved"][1]


def judged(own, verified):
    return metrics([0]) + [
        evaluation(step, 0.5, 0.4, success=a, verified_success=b)
        for step, (a, b) in enumerate(zip(own, verified, strict=True), 1)
    ]


EVEN = [0.5, 0.52, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
RISEN = [0.5, 0.52, 0.6, 0.7, 0.8, 0.8, 0.9, 0.92]


@pytest.mark.parametrize(
    ("own", "verified", "verdict"), [(EVEN, EVEN, "good"), (RISEN, RISEN, "good"), (RISEN, EVEN, "look")]
)
def test_a_learnt_reward_that_claims_ever_more_than_the_verifier_is_named(check, own, verified, verdict):
    found, words = check(metrics=judged(own, verified))["Learnt reward and verifier agree"]
    assert found == verdict
    assert f"by the learnt reward went from 0.510 to {own[6] / 2 + own[7] / 2:.3f}" in words
    assert f"by the verifier from 0.510 to {verified[6] / 2 + verified[7] / 2:.3f}." in words


def test_without_a_learnt_reward_nothing_is_said_of_one(check):
    assert "Learnt reward and verifier agree" not in check()
    assert "Learnt reward and verifier agree" not in check(metrics=judged(RISEN, EVEN)[:2])
