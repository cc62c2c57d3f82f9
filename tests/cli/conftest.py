"""``allotment train trl`` on the lab's Hugging Face folder."""

import json

import pytest

from allotment.lab.hugging_face import model_folder, rows


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """The pool's prompts with a number for an answer."""
    file = tmp_path_factory.mktemp("data") / "numbers.jsonl"
    chosen = [row for row in rows("pool") if row["answer"].isdigit()][:40]
    file.write_text("".join(json.dumps(row) + "\n" for row in chosen))
    return file


@pytest.fixture
def command(dataset, tmp_path):
    def words(out="run", **flags):
        settings = {
            "model": model_folder(),
            "dataset": dataset,
            "prompt_id_column": "prompt_id",
            "extract": "last_number",
            "steps": 5,
            "prompts_per_step": 4,
            "rollouts_per_prompt": 4,
            "micro_batch": 8,
            "max_completion_tokens": 17,
            "learning_rate": 1e-4,
            "held_out": 4,
            "evaluate_every": 3,
            "checkpoint_every": 2,
            **flags,
        }
        flags = []
        for name, value in settings.items():
            flags += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else (value,))]
        return ["train", "trl", "--out", str(tmp_path / out), *flags]

    return words
