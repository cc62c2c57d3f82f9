"""``allotment shape`` as a person uses it."""

import json

import numpy as np
import pytest

from allotment.cli.main import main
from allotment.planning.gradient_size import USUAL_KAPPA


@pytest.fixture
def run_log(tmp_path):
    """A run of 40 prompts, 20 a step with 8 rollouts."""
    rng, path = np.random.default_rng(0), tmp_path / "rollouts.jsonl"
    p = rng.beta(0.5, 0.5, 40)
    rows = [
        {"prompt_id": int(q), "step": step, "round": 0, "n": 8, "successes": int(rng.binomial(8, p[q])), "tokens": 800}
        for step in range(1, 9)
        for q in (np.arange(20) + 20 * (step % 2))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(capsys, *arguments):
    status = main(["shape", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_a_run_is_advised(capsys, run_log):
    status, out, _ = run(capsys, run_log.parent, "--json", "--prompt-tokens", 50)
    found = json.loads(out)
    assert status == 0
    assert (found["rollouts"], found["kappa"]) == (160, USUAL_KAPPA)
    assert (found["own"]["prompts"], found["own"]["rollouts_per_prompt"]) == (20, 8)
    assert found["own"]["rloo"] == pytest.approx(1.0)
    assert (found["own"]["completion_tokens"], found["own"]["prefill_tokens"]) == (16_000, 1_000)
    assert [(s["prompts"], s["rollouts"]) for s in found["shapes"]][:4] == [(160, 160), (80, 160), (40, 160), (20, 160)]
    for name, least in (("rloo", 2), ("shrinkage", 1)):
        for cost in ("rollouts", "with_prefill"):
            advised = found["best"][name][cost]
            assert advised["prompts"] <= 40
            assert advised["rollouts_per_prompt"] >= least
            assert 0 < advised["variance_at_equal_cost"] < 1


def test_the_table_says_what_it_assumes(capsys, run_log):
    _, out, _ = run(capsys, run_log, "--kappa", 2, "--rollouts", 320)
    for part in (
        "relative to the log's 20 x 8", "320 x 1", "best with rloo at equal rollouts: 40 x 8", "kappa = 2",
        "prompts (--prompt-tokens N): no advice with prefill", "more prompts than the log's 40", "read once",
    ):  # fmt: skip
        assert part in out
    assert "prefill among them" not in out


def test_what_a_log_lacks_is_taken_from_its_texts_and_flags(capsys, tmp_path):
    path = tmp_path / "log.jsonl"
    rows = [{"prompt_id": i, "prompt": "x" * 40, "rollouts_per_visit": 2, "successes": [i % 3, 1, 2]} for i in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, out, _ = run(capsys, path, "--json", "--completion-tokens", 30, "--batch", 4)
    found = json.loads(out)
    assert (found["own"]["prompts"], found["own"]["prefill_tokens"], found["own"]["completion_tokens"]) == (3, 30, 180)
    for said in ("10 tokens, of 4 characters", "order assumed", "100 % of the visits have fewer than four"):
        assert any(said in note for note in found["notes"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("--kappa", 0), "kappa"), (("--rollouts", 0), "rollouts"), (("--prompt-tokens", -1), "prompt_tokens")],
)
def test_unusable_settings_are_explained(capsys, run_log, arguments, said):
    status, out, err = run(capsys, run_log, *arguments)
    assert (status, out) == (2, "")
    assert said in err
    assert "fix:" in err


def test_several_runs_are_refused(capsys, run_log):
    other = run_log.parent / "other"
    other.mkdir()
    (other / "rollouts.jsonl").write_text(run_log.read_text())
    status, _, err = run(capsys, run_log.parent)
    assert status == 2
    assert "several runs" in err
