"""What the tests of the selectors share: scored rollouts from a list of rewards per group, by hand or at random."""

from dataclasses import fields, replace

import numpy as np

from allotment.selection import Scored


def scored(groups, *, step=1, numbers=None, ages=None, **columns):
    """The rollouts of ``groups``, a list of rewards for each; groups one after another.

    ``columns`` replaces any other field of :class:`Scored`. Advantages are those of RLOO; each completion has 10
    tokens, none is cut; all entropies are 1; numbers are 0, 1, ...
    """
    sizes_Q = np.array([len(rewards) for rewards in groups], dtype=np.int64)
    rows_N = np.repeat(np.arange(len(groups)), sizes_Q)
    rewards_N = np.array([reward for rewards in groups for reward in rewards], dtype=np.float64)
    count = len(rows_N)
    given = {
        "progress": min(step / 100, 1.0),
        "prompt_ids": tuple(f"prompt {q}" for q in range(len(groups))),
        "advantages_N": rloo(rewards_N, rows_N),
        "lengths_N": np.full(count, 10),
        "truncated_N": np.zeros(count, dtype=bool),
        "entropies_N": np.ones(count),
        "ages_Q": np.zeros(len(groups), dtype=np.int64) if ages is None else np.asarray(ages, dtype=np.int64),
        "numbers_N": np.arange(count) if numbers is None else np.asarray(numbers, dtype=np.int64),
        "clip_fractions_N": np.zeros(count),
    }
    return Scored(step=step, rows_N=rows_N, rewards_N=rewards_N, **{**given, **columns})


def rloo(rewards_N, rows_N):
    """[N] each reward minus the mean of the others of its group; 0 in a group of one."""
    size_N = np.bincount(rows_N)[rows_N]
    mean_N = (np.bincount(rows_N, rewards_N) / np.maximum(np.bincount(rows_N), 1))[rows_N]
    return (rewards_N - mean_N) * size_N / np.maximum(size_N - 1, 1)


def random_scored(rng, *, groups=6, sizes=(1, 9), step=1, first_number=0, rewards=None, **columns):
    """Rollouts at random: binary rewards (or ``rewards(rng, n)`` of a group), every measured column filled."""
    draw = rewards or (lambda rng, n: (rng.random(n) < rng.random()).astype(float))
    drawn = [draw(rng, int(n)) for n in rng.integers(*sizes, size=groups)]
    count = sum(map(len, drawn))
    measured = {
        "lengths_N": rng.integers(1, 200, count),
        "truncated_N": rng.random(count) < 0.1,
        "entropies_N": rng.gamma(2.0, 0.5, count),
    }
    numbers = first_number + rng.permutation(count)
    return scored(drawn, step=step, numbers=numbers, **{**measured, **columns})


def permuted(one, order):
    """The same rollouts in another order: ``order[i]`` is the old position of rollout ``i``."""
    return replace(one, **{name: getattr(one, name)[order] for name in _per_rollout(one)})


def joined(*parts):
    """Several scored parts as one, their groups one after another: a window of steps. Step and progress of the last."""
    offsets = np.cumsum([0, *(len(part.prompt_ids) for part in parts[:-1])])
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _per_rollout(parts[-1])}
    columns["rows_N"] = np.concatenate([part.rows_N + offset for part, offset in zip(parts, offsets, strict=True)])
    ids = tuple(prompt for part in parts for prompt in part.prompt_ids)
    ages_Q = np.concatenate([part.ages_Q + parts[-1].step - part.step for part in parts])
    return replace(parts[-1], prompt_ids=ids, ages_Q=ages_Q, **columns)


def kept_of(selection, one):
    """For each group, the rewards that are kept, sorted."""
    kept_N = selection.is_kept
    return [sorted(one.rewards_N[kept_N & (one.rows_N == q)].tolist()) for q in range(len(one.prompt_ids))]


def bits(state):
    """A state with every array as its bytes: equal states are equal to the last bit, and share nothing."""
    if isinstance(state, dict):
        return {key: bits(value) for key, value in state.items()}
    return (state.dtype.str, state.shape, state.tobytes()) if isinstance(state, np.ndarray) else repr(state)


def _per_rollout(one):
    return [f.name for f in fields(one) if f.name.endswith("_N") and isinstance(getattr(one, f.name), np.ndarray)]
