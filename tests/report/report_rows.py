"""Lines of hand-made logs."""

import json

from allotment.audit import Settings, read_log, replay
from allotment.audit.predictors import Prompts, predictor_for
from allotment.audit.summary import Audited, summarise, wasted_prompts
from allotment.lab.config import TrainConfig
from allotment.registry import PREDICTORS


def evaluation(step, pool, held_out, rollouts=None, tokens=None, **more):
    """A metrics line with success probabilities; 128 rollouts of 10 tokens a step unless told."""
    rollouts = 128 * step if rollouts is None else rollouts
    trained = {"zero_variance_groups": 0.5, "min_count": 3, "max_count": 20} if step else {}
    return {
        "step": step,
        "rollouts_total": rollouts,
        "tokens_total": 10 * rollouts if tokens is None else tokens,
        **trained,
        "pool_success": pool,
        "held_out_success": held_out,
        **more,
    }


def group(n, successes, predicted, step=1, prompt="a"):
    """A rollouts line."""
    return {
        "prompt_id": prompt,
        "step": step,
        "round": 0,
        "n": n,
        "successes": successes,
        "tokens": 10 * n,
        "predicted_mean": predicted,
        "predicted_sd": None if predicted is None else 0.1,
    }


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_run_directory(path, *, held_out=(0.1, 0.2, 0.3), metrics=None, rollouts=(), seconds=(), resumed=(), **config):
    """A run directory of 20 steps evaluated at 0, 10 and 20, unless told."""
    path.mkdir(parents=True)
    settings = TrainConfig(**{"steps": 20, **config})
    rows = [evaluation(10 * i, value + 0.1, value) for i, value in enumerate(held_out)]
    (path / "config.json").write_text(settings.to_json())
    (path / "metrics.jsonl").write_text(lines(rows if metrics is None else metrics))
    (path / "rollouts.jsonl").write_text(lines(rollouts))
    timing = [{"step": i + 1, "seconds": s} for i, s in enumerate(seconds)]
    again = [{"step": step, "resumed": True} for step in resumed]
    (path / "timing.jsonl").write_text(lines(sorted(timing + again, key=lambda row: row["step"])))
    return path


def audited(tmp_path, successes, name="x", notes=()):
    """The audit of a log with these success counts of 8, [prompts][visits]; prompt ids carry ``name``."""
    file = tmp_path / "log.jsonl"
    lines = [
        {"prompt_id": f"{name}-{i}", "rollouts_per_visit": 8, "successes": [int(k) for k in row]}
        for i, row in enumerate(successes)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    log, used = read_log(file), "discounted-counts"
    predictor, plug_in = predictor_for(used, Prompts(log.ids)), PREDICTORS[used].plug_in
    made = replay(log, predictor, Settings(8, 3, 32, "rloo"), plug_in=plug_in)
    found = (made.by_range(), {"budget_per_prompt": 8}, wasted_prompts(log))
    return Audited(str(file), used, summarise(made), (*log.notes, *notes), *found)
