"""The adapter's arithmetic on its own: layout, advantages, identity; and its log read by the audit."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from trl_cases import OURS, dataset, deviation, groups_of, rows, train

from allotment.audit import read_log
from allotment.cli.main import main
from allotment.errors import ConfigError, InvalidInputError, RewardMismatchError
from allotment.integrations.trl import advantages
from allotment.integrations.trl.batch import every_nth, lay_out
from allotment.integrations.trl.prompts import PromptIdentity, prompt_texts
from allotment.integrations.trl.rows import ROW, NumberedRows
from allotment.learning import advantages as own


@st.composite
def ragged(draw, nan=False):
    """(rewards_N float64, group_N) of 1 to 6 groups of 2 to 7, interleaved."""
    sizes = draw(st.lists(st.integers(2, 7), min_size=1, max_size=6))
    groups = draw(st.permutations([g for g, n in enumerate(sizes) for _ in range(n)]))
    value = st.integers(-6, 6).map(lambda i: i / 3)
    value = value | st.just(math.nan) if nan else value
    rewards = draw(st.lists(value, min_size=len(groups), max_size=len(groups)))
    return torch.tensor(rewards, dtype=torch.float64), torch.tensor(groups)


def close(left, right):
    return torch.allclose(left, right, rtol=0, atol=1e-6)  # TRL's standard deviation counts in float32


@given(ragged())
def test_without_gaps_they_are_the_librarys(case):
    rewards_N, group_N = case
    assert close(advantages.grpo_advantages(rewards_N, group_N, "none"), own.dr_grpo_advantages(rewards_N, group_N))
    assert close(advantages.rloo_advantages(rewards_N, group_N, normalize=False), own.rloo_advantages(*case))
    # a group of equal thirds may keep a rounding of its mean, which the library does not and TRL does
    assert close(advantages.grpo_advantages(rewards_N, group_N, "group"), own.grpo_advantages(rewards_N, group_N))


KINDS = {
    **{
        scale: lambda r, g, scale=scale: advantages.grpo_advantages(r, g, scale) for scale in ("group", "batch", "none")
    },
    "rloo": lambda r, g: advantages.rloo_advantages(r, g, normalize=False),
    "rloo normalised": lambda r, g: advantages.rloo_advantages(r, g, normalize=True),
    "gdpo": lambda r, g: advantages.gdpo_advantages(r[:, None], torch.ones(1, dtype=r.dtype), g),
}


@pytest.mark.parametrize("kind", KINDS)
@given(case=ragged(nan=True), data=st.data(), shift=st.integers(-3, 3))
def test_order_and_level_of_rewards_do_not_matter(kind, case, data, shift):
    rewards_N, group_N = case
    expected_N = KINDS[kind](rewards_N, group_N)
    assert expected_N.isfinite().all()
    order_N = torch.tensor(data.draw(st.permutations(range(len(rewards_N)))))
    assert close(KINDS[kind](rewards_N[order_N], group_N[order_N]), expected_N[order_N])
    assert close(KINDS[kind](rewards_N + shift, group_N), expected_N)


@pytest.mark.parametrize("kind", KINDS)
@given(case=ragged(nan=True))
def test_a_rollout_without_a_reward_has_no_influence(kind, case):
    rewards_N, group_N = case
    scored_N = ~rewards_N.isnan()
    actual_N = KINDS[kind](rewards_N, group_N)
    assert (actual_N[~scored_N] == 0).all()
    if scored_N.any():
        assert close(actual_N[scored_N], KINDS[kind](rewards_N[scored_N], group_N[scored_N]))


@given(ragged(nan=True), st.lists(st.sampled_from([0.0, 0.3, 1.0]), min_size=3, max_size=3))
def test_gdpo_by_hand(case, weights):
    rewards_N, group_N = case
    columns = [rewards_N.tolist(), [float(i % 3) for i in range(len(group_N))], [math.nan] * len(group_N)]
    scaled = []
    for values in columns:
        out = [math.nan] * len(values)
        for members in groups_of(group_N.tolist()).values():
            real = [values[i] for i in members if not math.isnan(values[i])]
            for i in members:
                if real and not math.isnan(values[i]) and len(real) > 1:
                    out[i] = (values[i] - math.fsum(real) / len(real)) / (deviation(real) + 1e-4)
        scaled.append(out)
    totals = [
        math.fsum(w * column[i] for w, column in zip(weights, scaled, strict=True) if not math.isnan(column[i]))
        for i in range(len(group_N))
    ]
    mean, spread = math.fsum(totals) / len(totals), deviation(totals)
    expected_N = torch.tensor([(t - mean) / (spread + 1e-4) for t in totals], dtype=torch.float64)
    rewards_NF = torch.tensor(columns, dtype=torch.float64).T
    actual_N = advantages.gdpo_advantages(rewards_NF, torch.tensor(weights, dtype=torch.float64), group_N)
    assert close(actual_N, expected_N)


@given(ragged(nan=True))
def test_every_prompt_weighs_the_same(case):
    _, group_N = case
    weights_N = advantages.prompt_weights(group_N, "prompt")
    sums = [weights_N[members].sum().item() for members in groups_of(group_N.tolist()).values()]
    assert sums == pytest.approx([len(group_N) / len(sums)] * len(sums), rel=1e-5)
    assert weights_N.mean().item() == pytest.approx(1, rel=1e-5)
    assert (advantages.prompt_weights(group_N, "rollout") == 1).all()


@given(ragged(nan=True))
def test_by_rollout_undoes_by_group(case):
    rewards_N, group_N = case
    rows_QK = advantages.by_group(rewards_N, group_N)
    assert advantages.by_rollout(rows_QK, group_N).nan_to_num(9).equal(rewards_N.nan_to_num(9))
    for row, members in zip(rows_QK, sorted(groups_of(group_N.tolist()).items()), strict=True):
        expected = rewards_N[members[1]]
        assert row[: len(expected)].nan_to_num(9).equal(expected.nan_to_num(9))
        assert row[len(expected) :].isnan().all()
    constant = advantages.constant_groups(rewards_N, group_N).tolist()
    for is_constant, (_, members) in zip(constant, sorted(groups_of(group_N.tolist()).items()), strict=True):
        real = [v for v in rewards_N[members].tolist() if not math.isnan(v)]
        assert is_constant == (len(real) > 1 and len(set(real)) == 1)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.data())
def test_a_layout_has_each_count(candidates, data):
    distinct = list(dict.fromkeys(candidates))
    kept = data.draw(st.lists(st.sampled_from(distinct), min_size=1, unique=True))
    counts = data.draw(st.lists(st.just(0) | st.integers(2, 9), min_size=len(kept), max_size=len(kept)))
    if not sum(counts):
        counts[0] = 2
    layout = lay_out(candidates, kept, counts, sum(counts))
    assert len(layout.candidate_N) == len(layout.group_N) == sum(counts)
    ids = layout.group_ids(range(sum(counts)))
    assert [candidates[c] for c in layout.candidate_N] == ids
    assert {p: ids.count(p) for p in kept} == dict(zip(kept, counts, strict=True))
    assert ids == [p for p in distinct for _ in range(ids.count(p))]  # together, in the loader's order
    for prompt in set(ids):
        shares = [layout.candidate_N.tolist().count(c) for c, p in enumerate(candidates) if p == prompt]
        assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize("counts", [[3, 4], [3, 6], [1, 7], [8, 1]])
def test_a_layout_that_does_not_fill_the_batch_is_refused(counts):
    with pytest.raises(RewardMismatchError, match="does not fill"):
        lay_out(["a", "b"], ["a", "b"], counts, 8)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.integers(1, 4))
def test_every_nth_undoes_the_data_loaders_repeats(keys, repeats):
    assert every_nth([k for k in keys for _ in range(repeats)], repeats) == keys


@pytest.mark.parametrize(("keys", "repeats"), [([1, 1, 2], 2), ([1, 2], 2), ([1, 1, 2, 1], 2)])
def test_other_orders_are_refused(keys, repeats):
    with pytest.raises(ConfigError, match="RepeatSampler"):
        every_nth(keys, repeats)


def same(ids):
    """Each id as the place where it first stands."""
    return [ids.index(prompt) for prompt in ids]


def test_rows_are_one_prompt_only_if_nothing_tells_them_apart():
    data = Dataset.from_list(rows(3) + rows(2))
    assert same(PromptIdentity(data, None).all()) == [0, 1, 2, 0, 1]
    assert PromptIdentity(data, "name").all() == ["p0", "p1", "p2", "p0", "p1"]
    assert same(PromptIdentity(data, None, makes_prompts=True).all()) == [0, 1, 2, 3, 4]
    other = Dataset.from_list([*rows(2), {**rows(1)[0], "answer": "?"}])
    assert same(PromptIdentity(other, None).all()) == [0, 1, 2]
    assert same(PromptIdentity(data.remove_columns("prompt"), None).all()) == [0, 1, 2, 0, 1]


def test_a_prompt_keeps_its_id_in_any_order_and_selection_and_behind_any_transform():
    data = Dataset.from_list(rows(12))
    ids = PromptIdentity(data, None).all()
    chosen = data.shuffle(seed=1).select(range(5))
    names = [int(name[1:]) for name in chosen["name"]]
    assert PromptIdentity(chosen, None).all() == [ids[i] for i in names]
    hidden = data.with_transform(lambda batch: {"prompt": ["same"] * len(batch["prompt"])})
    assert PromptIdentity(hidden, None).all() == ids
    assert PromptIdentity(data.with_format("numpy", columns=["easy"], output_all_columns=True), None).all() == ids
    numbered = NumberedRows(hidden)
    assert numbered[3] == {"prompt": "same", ROW: 3}
    assert numbered.__getitems__([3, 3, 0]) == [{"prompt": "same", ROW: i} for i in (3, 3, 0)]
    assert PromptIdentity(hidden, None).of([numbered[3], numbered[3]]) == [ids[3], ids[3]]
    with pytest.raises(ConfigError, match="without their place"):
        PromptIdentity(hidden, None).of([{"prompt": "same"}])


def test_how_many_different_prompts_there_are():
    identity = PromptIdentity(Dataset.from_list(rows(3) + rows(2)), None)
    assert [identity.has(n) for n in (0, 1, 3, 4, 9)] == [True, True, True, False, False]


def test_identity_in_a_stream():
    stream = PromptIdentity(dataset(3).to_iterable_dataset(), None)
    turns = [{"role": "user", "content": "a"}]
    pixels = [np.zeros((2, 2), np.uint8), np.ones((2, 2), np.uint8)]
    same_rows = [{"prompt": "a", "x": 1}, {"x": 1, "prompt": "a"}, {"prompt": "a", "x": 2}, {"prompt": "b", "x": 1}]
    assert same(stream.of(same_rows)) == [0, 0, 2, 3]
    mixed = [{"prompt": turns}, {"prompt": [dict(reversed(turns[0].items()))]}, {"prompt": "a"}]
    assert same(stream.of(mixed)) == [0, 0, 2]
    images = [Image.fromarray(values) for values in (*pixels, pixels[0])]
    assert same(stream.of([{"prompt": "?", "image": image} for image in images])) == [0, 1, 0]
    assert same(stream.of([{"prompt": "?", "pixels": values} for values in (*pixels, pixels[0])])) == [0, 1, 0]
    held = [np.array([{"role": "user", "content": text}], dtype=object) for text in ("a", "b", "a")]
    assert same(stream.of([{"prompt": messages} for messages in held])) == [0, 1, 0]
    with pytest.raises(InvalidInputError, match="cannot be told apart"):
        stream.of([{"prompt": object()}])
    with pytest.raises(ConfigError, match="environments"):
        PromptIdentity(dataset(3).to_iterable_dataset(), None, makes_prompts=True)


@pytest.mark.parametrize("is_stream", [False, True])
def test_an_id_that_names_two_prompts_is_refused_with_both(is_stream, caplog):
    twice = [
        {"prompt": "1+1=", "id": 0, "x": 1},
        {"prompt": "2+2=", "id": 1, "x": 1},
        {"prompt": "1+1=", "id": 0, "x": 2},
    ]
    for rows_, is_bad in [(twice, False), ([*twice, {"prompt": "5+5=", "id": 1, "x": 1}], True)]:
        data = Dataset.from_list(rows_)
        identity = (
            None
            if is_bad and not is_stream
            else PromptIdentity(data.to_iterable_dataset() if is_stream else data, "id")
        )
        if is_bad:
            with pytest.raises(InvalidInputError, match=r"(?s)same id.*2\+2=.*5\+5="):
                identity.of(rows_) if is_stream else PromptIdentity(data, "id")
        elif is_stream:
            assert identity.of(rows_) == [0, 1, 0]
        else:
            assert identity.all() == [0, 1, 0]
            assert "differ in x" in caplog.text


def test_an_id_that_names_two_images_is_refused():
    images = [Image.fromarray(np.full((2, 2), v, np.uint8)) for v in (0, 1)]
    rows_ = [{"prompt": "what?", "id": 0, "image": image} for image in images]
    with pytest.raises(InvalidInputError, match="same id"):
        PromptIdentity(Dataset.from_list(rows_), "id")
    with pytest.raises(InvalidInputError, match="same id"):
        PromptIdentity(Dataset.from_list(rows_).to_iterable_dataset(), "id").of(rows_)


def test_texts_of_prompts():
    parts = [{"type": "image"}, {"type": "text", "text": "what?"}]
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": parts}]
    assert prompt_texts(["plain", turns]) == ["plain", "be brief\n\nwhat?"]


def test_the_audit_reads_the_log_of_a_run(tmp_path, capsys):
    trainer = train(*OURS["grpo"], tmp_path, data=dataset(8), max_steps=8)
    path = tmp_path / "rollouts.jsonl"
    log = read_log(path)
    assert log.trials.sum() == 8 * 16
    assert set(log.ids) == set(PromptIdentity(dataset(8), None).all())
    assert log.step.tolist() == [s for s in range(1, 9) for _ in range(4)]
    rewards = [entry["reward"] for entry in trainer.state.log_history[:-1]]
    assert log.successes.sum() == pytest.approx(16 * sum(rewards))
    assert main(["audit", str(path), "--budget-per-prompt", "4"]) == 0
    assert "global-mean" in capsys.readouterr().out
