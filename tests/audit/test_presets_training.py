"""What trainers leave on disk, with every field that their code writes; each dump with its known truth."""

import json
import uuid
from dataclasses import replace

import numpy as np
import pytest
from audit_cases import write_lines
from preset_cases import ROLLOUTS, counted, history, history_of, of_step, shuffled, steps_of, truth

from allotment.audit import find_sources, read_log
from allotment.cli.main import main


def written(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_lines(path, rows)


def lengths_of(rollouts):
    found = {}
    for r in rollouts:
        found[r.step, r.prompt] = found.get((r.step, r.prompt), 0) + r.tokens
    return sorted(found.values())


def check(folder, name, rollouts=ROLLOUTS, *, note=None, tokens=True):
    (source,) = find_sources(folder)
    assert source.format == name
    log = read_log(folder)
    assert log.read_as.startswith(f"format = {name}, ")
    assert counted(log) == truth(rollouts)
    assert history_of(log) == history(rollouts)
    if tokens:
        assert log.length_unit == "tokens"
        assert sorted(log.lengths.tolist()) == lengths_of(rollouts)
    assert note is None or any(note in n for n in log.notes), log.notes
    assert history_of(read_log(folder, format=name)) == history(rollouts)
    return log


def verl(r, step=None, **more):
    step = r.step if step is None else step
    return {
        "input": f"user\n{r.text}\nassistant\n",
        "output": r.answer,
        "gts": "7",
        "score": r.reward,
        "step": step,
        **more,
    }


def test_verl(tmp_path):
    for step in steps_of():
        rows = [
            verl(
                r,
                acc=bool(r.reward),
                pred="7",
                score=1.1 if r.reward else -0.1 * r.number,
                request_id=str(uuid.uuid4()),
            )
            for r in of_step(step)
        ]
        written(tmp_path / "rollouts" / f"{step}.jsonl", shuffled(rows, step))
        written(
            tmp_path / "validation" / f"{step}.jsonl", [verl(r, reward=r.reward, acc=1.0) for r in of_step(step)[:8]]
        )
    log = check(tmp_path, "verl", note="6 files of evaluations passed over (first: validation/1.jsonl)", tokens=False)
    assert "reward = acc" in log.read_as


def test_verl_of_version_1_names_turns_as_uid(tmp_path):
    """``uid`` is ``{uid of the visit}_{rollout}_{turn}``; each turn has the score of the last."""
    for step in steps_of():
        visit = {r.prompt: str(uuid.UUID(int=1000 * step + r.prompt)) for r in of_step(step)}
        rows = [
            {**verl(r), "input": verl(r)["input"] + "tool said 3" * turn, "uid": f"{visit[r.prompt]}_{r.number}_{turn}"}
            for r in of_step(step)
            for turn in range(1 + r.number % 3)
        ]
        written(tmp_path / f"{step}.jsonl", rows)
    check(tmp_path, "verl", tokens=False)


def test_verl_own_uid_that_looks_like_a_turn(tmp_path):
    for step in steps_of():
        written(tmp_path / f"{step}.jsonl", [verl(r, uid=f"math_{r.prompt}_3") for r in of_step(step)])
    check(tmp_path, "verl", tokens=False)


def test_verl_texts_that_stand_for_several_images(tmp_path):
    """Two of a step's prompts have one text: each of their groups is a prompt of its own, the others come back."""
    for step in steps_of():
        rows = [{**verl(r), "uid": f"{step}-{r.prompt}"} for r in of_step(step)]
        rows = [
            {**row, "input": "<image>Solve."} if r.prompt % 4 < 2 else row
            for row, r in zip(rows, of_step(step), strict=True)
        ]
        written(tmp_path / f"{step}.jsonl", rows)
    log = read_log(tmp_path)
    assert history_of(log, by_visit=True) == history(ROLLOUTS, by_visit=True)
    assert len(log.ids) == 6 + 12
    assert any(note.startswith("12 groups have a text that another group") for note in log.notes)


def traced(r, step, ok=True, multi=False):
    """``Episode.to_record``: nothing that is None."""
    task = {
        "type": "MathTask",
        "data": {
            "idx": r.prompt, "prompt": r.text, "system_prompt": "Think.", "network_allow": ["*"], "network_block": [],
            "artifacts": [], "timeout": {}, "resources": {}, "answer": "7",
        },
        "key": f"key{r.prompt}", "hash": f"hash{r.prompt}",
    }  # fmt: skip
    usage = {"prompt_tokens": 9, "completion_tokens": r.tokens, "cached_input_tokens": 0}

    def trace(trainable, rewards):
        return {
            "version": 3, "id": uuid.uuid4().hex, "verifiers": {"version": "0.2.0", "commit": "abc"}, "task": task,
            "agent": {"config": {"id": "default"}, "runtime": {"type": "none"}, "name": "solver",
                      "trainable": trainable},
            "tools": [],
            "nodes": [
                {"message": {"role": "user", "content": r.text}, "sampled": False, "token_ids": [1, 2],
                 "mask": [False] * 2},
                {"message": {"role": "assistant", "content": r.answer}, "parent": 0, "sampled": True, "token_ids": [3],
                 "mask": [True], "logprobs": [-0.1]},
            ],
            "calls": [{"node": 1, "model": "m", "endpoint": "/chat/completions", "finish_reason": "stop",
                       "usage": usage, "time": {"start": 1.0, "end": 2.0}}],
            "request_rewrites": [], "response_rewrites": [], "rewards": rewards, "metrics": {"num_turns": 1.0},
            "info": {}, "extra_usage": [], "is_completed": True, "ok": ok, "stop_condition": "agent_completed",
            "errors": [], "timing": {"setup": {"start": 0.0, "end": 0.1}},
        }  # fmt: skip

    rewards = {"correct": {"score": r.reward, "weight": 1.0}, "format": {"score": 1.0, "weight": 0.0}}
    judge = [trace(False, {"judge": {"score": 0.5, "weight": 1.0}})] if multi else []
    return {
        "id": uuid.uuid4().hex, "env": {"id": "gsm8k", "name": "math"}, "task": task,
        "group": {"id": f"group-{r.step}-{r.prompt}"},
        "run": {"type": "train", "id": "r",
                "work": {"type": "train", "step": r.step, "policy": {"start": 0, "end": 1}}},
        "ok": ok, "errors": [] if ok else [{"type": "SandboxError", "message": "gone"}],
        "traces": [trace(True, rewards), *judge] if ok else [],
    }  # fmt: skip


def test_prime_rl(tmp_path):
    """All episodes beside those that were trained on and evaluations; a group that ends in the next step's folder."""
    for r in ROLLOUTS:
        late = r.number > 5 and r.step < 6
        path = tmp_path / "rollouts" / f"step_{r.step + late}" / "train" / "all" / "traces.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(traced(r, r.step, multi=r.prompt % 2 == 0)) + "\n")
            if r.number == 0:
                file.write(json.dumps(traced(r, r.step, ok=False)) + "\n")
    for step in steps_of():
        folder = tmp_path / "rollouts" / f"step_{step}"
        written(
            folder / "train" / "effective" / "traces.jsonl", [traced(r, step) for r in of_step(step) if r.prompt > 1]
        )
        written(folder / "eval" / "all" / "traces.jsonl", [traced(r, step) for r in of_step(step)])
        (folder / "rank_0.bin").write_bytes(b"\x00packed")
    written(tmp_path / "metrics.jsonl", [{"step": 1, "time": 1.5, "reward/mean": 0.4}])
    log = check(tmp_path, "prime-rl", note="left out: 24 × episode that failed")
    assert any("6 files with rollouts that others hold too" in note for note in log.notes)
    assert any("6 files of evaluations passed over" in note for note in log.notes)
    assert set(log.texts) == {r.text for r in ROLLOUTS}
    only = read_log(tmp_path / "rollouts" / "step_3" / "train" / "effective")
    assert history_of(only) == history([r for r in of_step(3) if r.prompt > 1])


def test_verifiers_1_evaluation(tmp_path):
    rows = [{k: v for k, v in traced(r, 1).items() if k not in ("group", "run")} for r in of_step(1)]
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "eval.json").write_text(json.dumps({"env": {"id": "gsm8k"}, "num_examples": 4}))
    written(tmp_path / "traces.jsonl", shuffled(rows))
    log = read_log(tmp_path)
    assert (find_sources(tmp_path)[0].format, counted(log)) == ("prime-rl", truth(of_step(1)))


def slime_sample(r, index, group, rollout=None, reward=None, status="completed"):
    """``Sample.to_dict``."""
    return {
        "group_index": group, "index": index, "rollout_id": rollout, "prompt": r.text,
        "tokens": r.prompt_tokens + r.answer_tokens, "multimodal_inputs": None, "multimodal_train_inputs": None,
        "multimodal_train_input_id": None, "apply_chat_template_kwargs": {}, "response": r.answer,
        "response_length": r.tokens, "label": "7", "reward": reward, "loss_mask": None, "weight_versions": ["3"],
        "rollout_log_probs": [-0.1] * r.tokens, "rollout_top_p_token_ids": None, "rollout_top_p_token_offsets": None,
        "rollout_routed_experts": None, "remove_sample": False, "teacher_log_probs": None, "status": status,
        "metadata": {"source": "dapo"}, "generate_function_path": None, "custom_rm_path": None, "train_metadata": None,
        "session_id": None, "non_generation_time": 0.0,
        "spec_info": {"spec_accept_token_num": 0, "spec_draft_token_num": 0, "spec_verify_ct": 0,
                      "completion_token_num": 0},
        "prefix_cache_info": {"cached_tokens": 0, "total_prompt_tokens": 6},
    }  # fmt: skip


def write_slime(folder, rollouts=ROLLOUTS, reward=lambda r: r.reward, aborted=()):
    torch = pytest.importorskip("torch")
    folder.mkdir(parents=True, exist_ok=True)
    index = 0
    for step in steps_of(rollouts):
        samples = []
        for at, r in enumerate(of_step(step, rollouts)):
            samples.append(slime_sample(r, index + at, (index + at) // 8, reward=reward(r)))
            samples += [slime_sample(r, index + at, 0, status="aborted")] if r in aborted else []
        torch.save({"rollout_id": step, "samples": samples}, folder / f"rollout_{step}.pt")
        index += len(of_step(step, rollouts))
        evaluated = [slime_sample(r, i, None, reward=1.0) for i, r in enumerate(of_step(step, rollouts)[:8])]
        torch.save({"rollout_id": step, "samples": evaluated}, folder / f"rollout_eval_{step}.pt")
    return folder


def test_slime(tmp_path):
    aborted = [r for r in ROLLOUTS if r.number == 3]
    write_slime(tmp_path, reward=lambda r: {"score": r.reward * 2 - 1, "acc": r.reward, "pred": "7"}, aborted=aborted)
    log = check(tmp_path, "slime", note=f"left out: {len(aborted)} × rollout that was aborted")
    assert any("6 files of evaluations passed over" in note for note in log.notes)
    assert read_log(tmp_path / "rollout_eval_2.pt").trials.sum() == 8


def test_verl_a_prompt_that_was_drawn_twice_in_a_step(tmp_path):
    """As where an epoch ends within a step: the two groups are one visit, and the prompt is still known."""
    rows = {step: [verl(r, uid=f"{step}-{r.prompt}") for r in of_step(step)] for step in steps_of()}
    again = [verl(r, step=4, uid="again") for r in ROLLOUTS if (r.step, r.prompt) == (1, 3)]
    for step in steps_of():
        written(tmp_path / f"{step}.jsonl", rows[step] + (again if step == 4 else []))
    log = read_log(tmp_path)
    assert history_of(log) == history([*ROLLOUTS, *(replace(r, step=4) for r in of_step(1) if r.prompt == 3)])


def test_texts_that_stand_for_several_images_in_other_dumps(tmp_path):
    torch = pytest.importorskip("torch")
    for step in steps_of():
        own = of_step(step)
        samples = [slime_sample(r, i, 4 * step + i // 8, reward=r.reward) for i, r in enumerate(own)]
        rows = [areal(r, r.prompt, step) for r in own]
        for row, r in [*zip(samples, own, strict=True), *zip(rows, own, strict=True)]:
            row["prompt"] = "<image>Solve." if r.prompt % 4 < 2 else r.text
        (tmp_path / "slime").mkdir(exist_ok=True)
        torch.save({"rollout_id": step, "samples": samples}, tmp_path / "slime" / f"{step}.pt")
        written(tmp_path / "areal" / str(step) / "0.jsonl", rows)
    for name in ("slime", "areal"):
        log = read_log(tmp_path / name)
        assert history_of(log, by_visit=True) == history(ROLLOUTS, by_visit=True)
        assert len(log.ids) == 6 + 12
        assert any(note.startswith("12 groups have a text that another group") for note in log.notes)


def test_files_of_ranks_are_one_run(tmp_path):
    """A group may lie in the files of several ranks."""
    for step in steps_of():
        for rank in range(3):
            rows = [{"prompt": r.text, "reward": r.reward} for i, r in enumerate(of_step(step)) if i % 3 == rank]
            written(tmp_path / "folders" / f"step_{step}" / f"rank_{rank}.jsonl", rows)
            written(tmp_path / "flat" / f"rollouts_step{step}_rank{rank}.jsonl", rows)
    assert [history_of(read_log(tmp_path / name)) for name in ("folders", "flat")] == [history(ROLLOUTS)] * 2


def test_splits_in_file_names(tmp_path):
    for split in ("train", "validation", "test"):
        rows = [{"step": r.step, "prompt": r.text, "reward": r.reward} for r in ROLLOUTS]
        written(tmp_path / "data" / f"{split}-00000-of-00001.jsonl", rows)
    log = read_log(tmp_path)
    assert history_of(log) == history(ROLLOUTS)
    assert "2 files of evaluations passed over (first: data/test-00000-of-00001.jsonl)" in log.notes


def test_prime_rl_as_it_was_in_july(tmp_path):
    """A record a trace, all of the run in one stream; and a stream of episodes without steps in its name."""
    episodes = [traced(r, r.step) for r in ROLLOUTS]
    known = {"kind": "train", "env_name": "math", "policy_version": 0, "eval_step": None}
    rows = [{**e["traces"][0], **known, "group_id": e["group"]["id"]} for e in episodes]
    for step in steps_of():
        written(
            tmp_path / "old" / f"step_{step}" / "traces.jsonl",
            [row for row, r in zip(rows, ROLLOUTS, strict=True) if r.step == step],
        )
    check(tmp_path / "old", "prime-rl")
    check(written(tmp_path / "new" / "all" / "traces.jsonl", episodes).parent, "prime-rl")


def test_slime_rollouts_of_several_samples_count_once(tmp_path):
    torch = pytest.importorskip("torch")
    for step in steps_of():
        samples = [
            slime_sample(
                replace(r, number=r.number),
                8 * r.prompt + r.number,
                100 * step + r.prompt,
                r.number + 8 * r.prompt,
                r.reward,
            )
            for r in of_step(step)
            for _ in range(1 + r.number % 2)
        ]
        torch.save({"rollout_id": step, "samples": samples}, tmp_path / f"{step}.pt")
    log = check(tmp_path, "slime", tokens=False)
    assert log.lengths.sum() == sum(r.tokens * (1 + r.number % 2) for r in ROLLOUTS)


def test_slime_training_samples(tmp_path):
    """``_build_dump_payload``: samples of all ranks in the order of the rollouts, raw rewards of the whole batch."""
    torch = pytest.importorskip("torch")
    for step in steps_of():
        own = of_step(step)
        samples = [
            {
                "data_parallel_rank": i % 2, "sample_index": i, "rollout_position": i,
                "tokens": torch.tensor(r.prompt_tokens + r.answer_tokens), "total_lengths": 6 + r.tokens,
                "response_lengths": r.tokens, "rewards": r.reward - 0.37, "truncated": 0, "rollout_ids": i,
                "loss_masks": torch.ones(r.tokens, dtype=torch.int), "log_probs": torch.zeros(r.tokens),
                "advantages": torch.zeros(r.tokens), "source_names": "dapo",
            }
            for i, r in enumerate(own)
        ]  # fmt: skip
        shards = [
            {"rank": k, "data_parallel_rank": k, "num_microbatches": [4], "partition": list(range(k, 32, 2))}
            for k in (0, 1)
        ]
        document = {
            "format_version": 2, "rollout_id": step, "rank": 0, "samples": samples, "dp_shards": shards,
            "raw_reward": [r.reward for r in own],
        }  # fmt: skip
        torch.save(document, tmp_path / f"train_{step}_0.pt")
    check(tmp_path, "slime-train")
    write_slime(tmp_path / "rollouts")
    check(tmp_path, "slime", note="6 files with rollouts that others hold too passed over")


def skyrl(r, score=None, prompt=None):
    extras = {
        "data_source": "openai/gsm8k",
        "reward_spec": {"method": "rule", "ground_truth": "7"},
        "extra_info": {"index": r.prompt},
    }
    return {
        "input_prompt": prompt or f"<|im_start|>user\n{r.text}", "output_response": r.answer + "<|im_end|>",
        "score": r.reward if score is None else score, "stop_reason": "stop", "env_class": "gsm8k",
        "env_extras": extras, "data_source": "openai/gsm8k",
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["rewards", "rewards a token"])
def test_skyrl(kind, tmp_path):
    for step in steps_of():
        folder = tmp_path / "dumped_evals" / f"global_step_{step}_evals"
        rows = [skyrl(r, None if kind == "rewards" else [0.0] * (r.tokens - 1) + [r.reward]) for r in of_step(step)]
        cut = len(rows) // 2
        written(folder / "openai_gsm8k.jsonl", rows[:cut])
        written(folder / "math.jsonl", rows[cut:])
        written(folder / "aggregated_results.jsonl", [{"eval/all/avg_score": 0.5, "eval/all/pass_at_8": 0.9}])
    check(tmp_path, "skyrl", note="6 files passed over, of no known format", tokens=False)


def test_skyrl_trajectories_of_several_turns_count_once(tmp_path):
    """``evaluate_step_wise``: a row a turn with the conversation so far; the reward is that of the last."""
    folder = tmp_path / "dumped_evals" / "eval_only"
    rows = []
    for r in of_step(1):
        row = skyrl(r, 0.0)
        for turn in range(r.number % 3):
            rows.append(row)
            row = skyrl(r, 0.0, row["input_prompt"] + row["output_response"] + f"tool: {turn}")
        rows.append({**row, "score": r.reward})
    written(folder / "gsm8k.jsonl", rows)
    assert counted(read_log(tmp_path)) == truth(of_step(1))


def test_skyrl_trajectories_of_an_agent(tmp_path):
    for r in ROLLOUTS:
        for phase in ("train", "eval"):
            path = tmp_path / f"step_{r.step}" / phase / f"django__django-{r.prompt}_{r.number}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            said = [
                {"role": "assistant", "content": r.answer, "extra": {"response": {}}},
                {"role": "user", "content": "ok"},
            ]
            info = {
                "exit_status": "Submitted",
                "submission": "diff",
                "model_stats": {"instance_cost": 0.0, "api_calls": 3},
            }
            data = {"info": info, "messages": r.messages + said, "trajectory_format": "mini-swe-agent-1"}
            path.write_text(json.dumps({**data, "reward": int(r.reward), "eval_error": None}, indent=2))
    check(tmp_path, "skyrl-agent", note=f"{len(ROLLOUTS)} files of evaluations", tokens=False)


def areal(r, task, version):
    return {
        "task_id": task, "sample_idx": r.number, "seqlen": 6 + r.tokens, "prompt_len": 6, "head_version": version - 1,
        "tail_version": version, "reward": r.reward, "prompt": f"<|im_start|>user\n{r.text}", "completion": r.answer,
    }  # fmt: skip


def test_areal(tmp_path):
    """A folder a version, a file a task; after a recovery tasks are numbered from 0 again."""
    for r in ROLLOUTS:
        task = (r.step - 1) % 3 * 4 + r.prompt % 4
        for folder in ("rollout", "eval-rollout"):
            path = tmp_path / folder / str(r.step) / f"{task}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(areal(r, task, r.step)) + "\n")
    check(tmp_path, "areal", note="files of evaluations passed over")


def nemo(r, index, **more):
    """``log_batched_dict_as_jsonl``: slices of one, so that every value stands in a list."""
    content = [r.text, r.answer, "Environment: correct"]
    if r.number % 2:  # several turns
        content = [r.text, "call", "tool: 3", r.answer, "Environment: correct"]
    tokens = r.prompt_tokens + r.answer_tokens + [5, 5]
    row = {
        "content": content, "rewards": r.reward, "input_lengths": len(tokens), "token_ids": [*tokens, 0, 0],
        "token_loss_mask": [0] * 6 + [1] * r.tokens + [0] * 4, "sample_loss_mask": 1.0,
        "advantages": [0.5] * (len(tokens) + 2), "generation_logprobs": [-0.1] * (len(tokens) + 2),
        "prev_logprobs": [-0.1] * (len(tokens) + 2), **more,
    }  # fmt: skip
    return {**{key: [value] for key, value in row.items()}, "idx": index}


@pytest.mark.parametrize("dynamic", [False, True])
def test_nemo_rl(dynamic, tmp_path):
    """With dynamic sampling ``rewards`` are of more rollouts than ``content``, and in another order."""
    for step in steps_of():
        own = of_step(step)
        rows = [
            nemo(r, i, **({"filtered_rewards": r.reward, "rewards": 1.0 - r.reward} if dynamic else {}))
            for i, r in enumerate(own)
        ]
        written(tmp_path / "exp_001" / f"train_data_step{step}.jsonl", rows)
        log = [
            [*({**m, "token_ids": "tensor([1])"} for m in r.messages), {"role": "assistant", "content": r.answer}]
            for r in own
        ]
        validation = [
            {"content": [c], "rewards": [r.reward], "idx": i} for i, (c, r) in enumerate(zip(log, own, strict=True))
        ]
        written(tmp_path / "exp_001" / f"val_data_step{step}.jsonl", validation)
    check(tmp_path, "nemo-rl", note="6 files of evaluations passed over")
    assert history_of(read_log(tmp_path / "exp_001" / "val_data_step2.jsonl")) == history(of_step(2))


def open_instruct(r, index):
    calls = {
        "num_calls": 0,
        "timeouts": 0,
        "tool_errors": "",
        "tool_outputs": "",
        "tool_runtimes": 0.0,
        "tool_calleds": False,
    }
    return {
        "step": r.step, "sample_idx": index, "prompt_idx": index // 8, "prompt_tokens": r.prompt_tokens,
        "response_tokens": r.answer_tokens, "reward": 10.0 * r.reward, "advantage": 0.1, "finish_reason": "stop",
        "dataset": "math", "ground_truth": [1, 2],
        "request_info": {**calls, "tool_call_stats": [], "rollout_state": {}}, "logprobs": [-0.1] * r.tokens,
    }  # fmt: skip


def test_open_instruct(tmp_path):
    """Shards of a run; another run in the same folder; a line that a killed writer cut short."""
    for name in ("grpo_v2__1__170", "grpo_v2__2__180"):
        meta = {"run_name": name, "git_commit": "abc", "model_name": "m", "timestamp": "2026-01-01T00:00:00+00:00"}
        written(tmp_path / f"{name}_metadata.jsonl", [meta])
        for shard, steps in enumerate([(1, 2, 3), (4, 5, 6)]):
            rows = [open_instruct(r, i) for step in steps for i, r in enumerate(of_step(step))]
            path = written(tmp_path / f"{name}_rollouts_{shard:06d}.jsonl", rows)
        with open(path, "a") as file:
            file.write(json.dumps(open_instruct(ROLLOUTS[0], 0))[:-40])
    sources = find_sources(tmp_path)
    assert [(s.format, len(s.files)) for s in sources] == [("open-instruct", 2)] * 2
    for path in tmp_path.glob("grpo_v2__2*"):
        path.unlink()
    check(tmp_path, "open-instruct", note="last line of a file cut short")


def tinker(r, logs):
    metrics = {"format": 1.0, "correct": r.reward}
    return {
        "schema_version": 1, "split": "train", "iteration": r.step, "group_idx": r.prompt % 4, "traj_idx": r.number,
        "tags": ["math"], "sampling_client_step": r.step, "total_reward": r.reward - 0.1 * (r.number % 2),
        "final_reward": 0.0, "trajectory_metrics": {},
        "steps": [{"step_idx": 0, "ob_len": 6, "ac_len": r.tokens, "reward": r.reward, "episode_done": True,
                   "metrics": metrics, "logs": logs}],
        "final_ob_len": 0,
    }  # fmt: skip


@pytest.mark.parametrize("logs", [False, True])
def test_tinker_cookbook(logs, tmp_path):
    for step in steps_of():
        folder = tmp_path / f"iteration_{step:06d}"
        rows = [tinker(r, {"problem": r.text} if logs else {}) for r in of_step(step)]
        written(folder / "train_rollout_summaries.jsonl", rows)
        written(folder / "eval_gsm8k_rollout_summaries.jsonl", [{**row, "split": "eval/gsm8k"} for row in rows[:8]])
        (folder / "train_logtree.json").write_text(json.dumps({"title": "RL", "root": {"children": [{"tag": "h1"}]}}))
    written(tmp_path / "metrics.jsonl", [{"step": 0, "reward/total": 0.5}])
    written(tmp_path / "checkpoints.jsonl", [{"name": "000001", "batch": 1, "state_path": "tinker://x"}])
    if logs:
        check(tmp_path, "tinker-cookbook", note="6 files of evaluations passed over")
    else:
        log = read_log(tmp_path)
        assert counted(log) == truth(ROLLOUTS, prompts=24)
        assert history_of(log, by_visit=True) == history(ROLLOUTS, by_visit=True)
        assert "each group counts as a prompt met once" in log.doubts[-1]


def trl(r, **more):
    return {
        "step": r.step, "prompt": r.text, "completion": r.answer, "correctness_reward": r.reward, "format_reward": 1.0,
        "advantage": 0.25, **more,
    }  # fmt: skip


def test_trl(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    pa = pytest.importorskip("pyarrow")
    from allotment.audit import Columns

    for step in steps_of():
        path = tmp_path / "completions" / f"completions_{step:05d}.parquet"
        path.parent.mkdir(exist_ok=True)
        parquet.write_table(pa.Table.from_pylist([trl(r) for r in of_step(step)]), path)
    log = read_log(tmp_path, columns=Columns(reward="correctness_reward"))
    assert history_of(log) == history(ROLLOUTS)
    assert find_sources(tmp_path, columns=Columns(reward="correctness_reward"))[0].format == "trl"


def test_the_command_line_says_the_same(tmp_path, capsys):
    write_slime(tmp_path / "slime")
    for step in steps_of():
        written(
            tmp_path / "areal" / "rollout" / str(step) / "7.jsonl",
            [areal(r, 7, step) for r in of_step(step) if r.prompt % 4 == 0],
        )
    for name, rollouts in (("slime", ROLLOUTS), ("areal", [r for r in ROLLOUTS if r.prompt % 4 == 0])):
        assert main(["audit", str(tmp_path / name), "--format", name, "--predictor", "last-value", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        expected = truth(rollouts)
        assert (found["prompts"], found["visits"]) == expected[:2]
        assert f"{expected[2]} rollouts, {expected[1]} groups, {expected[0]} prompts" in found["read_as"]


def test_several_runs_below_one_folder_are_never_mixed(tmp_path):
    """Folders that end in a number are not steps where their files know better."""
    for name in ("exp_v1", "exp_v2", "3", "4"):
        for step in steps_of():
            written(tmp_path / name / f"{step}.jsonl", [verl(r) for r in of_step(step)])
    sources = find_sources(tmp_path)
    assert sorted(source.path.name for source in sources) == ["3", "4", "exp_v1", "exp_v2"]
    assert {len(source.files) for source in sources} == {6}


def test_settings_and_a_missing_reward_come_first(tmp_path):
    settings = {"model": "m", "learning_rate": 1e-6}
    rows = [{"step": r.step, "prompt": r.text, "reward": r.reward} for r in ROLLOUTS]
    missing = [{**rows[0], "reward": value} for value in (float("nan"), None)]
    log = read_log(write_lines(tmp_path / "log.jsonl", [settings, *missing, *rows]))
    assert history_of(log) == history(ROLLOUTS)
    assert [note.partition(" (")[0] for note in log.notes[:2]] == [
        "left out: 1 × row without a prompt", "left out: 2 × rollout without a reward"
    ]  # fmt: skip


def test_paths_name_columns_inside_others(tmp_path):
    from allotment.audit import Columns

    rows = [{"meta": {"q": r.text, "t": r.step}, "scores": [r.reward, 0.3], "n": r.number} for r in ROLLOUTS]
    columns = Columns(prompt="meta.q", step="meta.t", reward="scores.0")
    assert history_of(read_log(write_lines(tmp_path / "a.jsonl", rows), columns=columns)) == history(ROLLOUTS)
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert history_of(read_log(tmp_path / "a.parquet", columns=columns)) == history(ROLLOUTS)


def test_numbers_of_numpy_in_tensor_files_are_damage(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"rollout_id": 1, "samples": [np.zeros(3)]}, tmp_path / "1.pt")
    with pytest.raises(Exception, match=r"holds more than numbers|directory without|not a JSON object"):
        read_log(tmp_path / "1.pt")
