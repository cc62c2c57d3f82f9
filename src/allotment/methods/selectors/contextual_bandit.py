"""Contextual rollout bandit (CBS, arXiv 2602.08499): which rollouts, also of earlier steps, are worth training on."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

import numpy as np

from allotment.checks import check_setting
from allotment.errors import InvalidInputError, StateError
from allotment.methods.selectors.bandit_learning import ARMS, GainRegressor, RolloutBuffer
from allotment.methods.selectors.subsets import BoolArray, ceil_share, first_of_groups
from allotment.registry import AFTER, Row
from allotment.selection import Scored, Selection, SelectorEntry, SelectorNeeds, draws
from allotment.state import State, array_from_state, check_state
from allotment.types import FloatArray, IntArray

Mode = Literal["intra", "global"]
NAMED_FEATURES = ("reward", "entropy", "clip_fraction", "log_length", "truncated", "age", "uses")
"""Those that the paper names; taking log(1 + tokens) as length is a reconstruction."""
FEATURES = (*NAMED_FEATURES, "advantage", "group_reward", "progress")
"""[F] With three more, a reconstruction: advantage, mean reward of the group, progress of training."""


@dataclass(frozen=True)
class Level:
    """How good and how random the policy of a step is."""

    reward: float
    """V: mean over the step's groups of their mean reward."""
    entropy: float
    """E: the same of the mean entropy, in nats."""


@dataclass(frozen=True, eq=False)
class Pulled:
    """The arms of the last step; what they brought is known when the next is shown."""

    step: int
    level: Level
    features_AF: FloatArray


class ContextualBandit:
    """Trains on the rollouts whose predicted gain is largest, from a regression on ten features of each.

    It decides after verification. ``mode="intra"`` keeps ``ceil(share * n)`` of every group of this step, at least
    one. ``mode="global"`` keeps the best ``min(keep, candidates)`` of all rollouts of the last ``window`` steps, whose
    completions the trainer keeps; it may leave groups empty. All kept rollouts of step t are credited with
    :func:`arm_reward` once step t + 1 is seen. Advantages come from whole groups; the loss counts the kept rollouts.

    There are no importance weights, neither for the selection nor for old rollouts: the objective is not the mean of p,
    and has no closed form, because what is selected is learnt. Read from the paper: the two modes, the arm reward,
    seven features, a small perceptron trained online. Reconstruction: everything else here, defaults, exploration,
    three features and all of :class:`~allotment.methods.selectors.bandit_learning.GainRegressor`. V and E are means
    over groups, so that a prompt with many rollouts weighs no more; for equal groups that is the paper's mean.

    Args:
        share: p, of every group; in global mode it gives ``keep`` where that is None.
        window: L, steps whose rollouts are candidates in global mode; None for 4. Always 1 in intra mode.
        keep: K, rollouts trained on in a step in global mode; None for ``ceil(share * rollouts of this step)``.
        entropy_weight: w_e, reward per nat of further entropy.
        entropy_floor: e_min in nats; below it entropy may grow.
        exploration: each place goes with probability ``exploration / sqrt(step)`` to a rollout drawn at random.
        hidden: width of the perceptron.
        learning_rate: of its Adam.
        seed: of exploration, ties and the perceptron.

    Raises:
        InvalidInputError: a setting is out of its range, or belongs to the other mode.
    """

    NEEDS = SelectorNeeds(frozenset({"truncated", "entropies", "clip_fractions"}), looks_back=True)

    def __init__(
        self,
        *,
        mode: Mode = "intra",
        share: float = 0.5,
        window: int | None = None,
        keep: int | None = None,
        entropy_weight: float = 0.1,
        entropy_floor: float = 0.5,
        exploration: float = 0.5,
        hidden: int = 16,
        learning_rate: float = 0.01,
        seed: int = 0,
    ) -> None:
        check_setting("mode", mode, mode in get_args(Mode), " or ".join(get_args(Mode)))
        is_global = mode == "global"
        for name, number in (("window", window), ("keep", keep)):
            fits = number is None or (is_global and isinstance(number, int) and number >= 1)
            check_setting(name, number, fits, "a whole number >= 1 in global mode, None in intra mode")
        check_setting("share", share, 0 < share <= 1, "0 < share <= 1")
        check_setting("entropy_weight", entropy_weight, 0 <= entropy_weight < np.inf, "a number >= 0")
        check_setting("entropy_floor", entropy_floor, 0 <= entropy_floor < np.inf, "nats >= 0")
        check_setting("exploration", exploration, 0 <= exploration <= 1, "a probability")
        check_setting("hidden", hidden, hidden >= 1, "a width >= 1")
        check_setting("learning_rate", learning_rate, 0 < learning_rate < np.inf, "a positive number")
        self.mode, self.share, self.keep, self.seed = mode, share, keep, seed
        self.window = (4 if window is None else window) if is_global else 1
        self.entropy_weight, self.entropy_floor = entropy_weight, entropy_floor
        self.exploration, self.hidden, self.learning_rate = exploration, hidden, learning_rate
        self.too_old = 0
        """Rollouts shown that had left the window; never trained on."""
        self.missed_steps = 0
        """Steps whose gain was never learnt, because the next one was not shown."""
        self.last_gain: float | None = None
        """The arm reward learnt at the last selection; None if none was."""
        self._step = 0
        self._regressor = GainRegressor(len(FEATURES), hidden=hidden, learning_rate=learning_rate, seed=seed)
        self._buffer = RolloutBuffer(self.window)
        self._pulled: Pulled | None = None

    def select(self, scored: Scored) -> Selection:
        """Learn what the last step brought, then choose for this one.

        Raises:
            StateError: the step is not a later one, or rollouts are not of the run that the buffer is of.
            InvalidInputError: a number stands twice, or a feature is not finite. Nothing has changed then.
        """
        if scored.step <= self._step:
            raise StateError(
                "a step that this bandit has behind it",
                got=f"step {scored.step} after step {self._step}",
                allowed="later steps",
                fix="restore selector and trainer from one and the same checkpoint",
            )
        fresh_N = scored.ages_Q[scored.rows_N] < self.window
        chosen = np.flatnonzero(fresh_N)[np.argsort(scored.numbers_N[fresh_N], kind="stable")]
        candidates = _taken(scored, chosen)  # by number: no bit of what follows depends on the order of the batch
        _check_numbers(candidates.numbers_N)
        features_NF = rollout_features(candidates, self._buffer.uses(candidates))
        level = level_of(candidates)
        self._learn(scored.step, level)
        kept_N = self._choose(candidates, self._regressor.predict(features_NF))
        self._buffer.record(candidates, kept_N)
        draws_N = draws(self.seed, scored.step, candidates.numbers_N, "remember")
        arms_N = np.argsort(np.where(kept_N, draws_N, np.inf))[: min(ARMS, int(kept_N.sum()))]
        self._pulled = None if level is None else Pulled(scored.step, level, features_NF[arms_N])
        self._step = scored.step
        self.too_old += int((~fresh_N).sum())
        weights_N = np.zeros(len(scored))
        weights_N[chosen[kept_N]] = 1.0
        return Selection(weights_N, baseline="generated", denominator="kept")

    def _learn(self, step: int, level: Level | None) -> None:
        """Credit the arms of the last step with what it brought."""
        self.last_gain, pulled = None, self._pulled
        if pulled is None:
            return
        if level is None or step != pulled.step + 1:
            self.missed_steps += 1
            return
        weight, floor = self.entropy_weight, self.entropy_floor
        self.last_gain = arm_reward(pulled.level, level, entropy_weight=weight, entropy_floor=floor)
        if len(pulled.features_AF):
            self._regressor.observe(pulled.step, pulled.features_AF, self.last_gain)

    def _choose(self, scored: Scored, values_N: FloatArray) -> BoolArray:
        """[N] the best of every group, or of all, some places at random."""
        sizes_Q = np.bincount(scored.rows_N, minlength=len(scored.prompt_ids))
        if self.mode == "intra":
            rows_N, room_Q = scored.rows_N, ceil_share(self.share, sizes_Q)
        else:
            new = sizes_Q[scored.ages_Q == 0].sum(keepdims=True)
            rows_N = np.zeros(len(scored), dtype=np.int64)
            room_Q = ceil_share(self.share, new) if self.keep is None else np.array([self.keep])
        draws_N = draws(self.seed, scored.step, scored.numbers_N, "lot")
        rate = self.exploration / np.sqrt(scored.step)
        explores_N = draws(self.seed, scored.step, scored.numbers_N, "explore") < rate
        stays_N = first_of_groups(rows_N, room_Q, -values_N, draws_N) & ~explores_N
        return first_of_groups(rows_N, room_Q, ~stays_N, draws_N)

    def state_dict(self) -> State:
        """Settings, buffer, the arms last pulled, what was learnt: everything."""
        last = self._pulled
        pulled = {} if last is None else {"step": last.step, "features": last.features_AF.copy(), **vars(last.level)}
        return {
            "kind": "ContextualBandit",
            "settings": self._settings(),
            "step": self._step,
            "too_old": self.too_old,
            "missed_steps": self.missed_steps,
            "last_gain": self.last_gain,
            "regressor": self._regressor.state_dict(),
            "buffer": self._buffer.state_dict(),
            "pulled": pulled,
        }

    def load_state_dict(self, state: State) -> None:
        """Take over what :meth:`state_dict` gave, all or nothing; StateError where it does not fit these settings."""
        check_state(state, "ContextualBandit", self.state_dict())
        if state["settings"] != self._settings():
            raise StateError(
                "the state of a contextual bandit has other settings",
                got=state["settings"],
                allowed=self._settings(),
                fix="make the bandit with the settings it was saved with",
            )
        pulled = _pulled_from_state(state["pulled"])
        buffer = RolloutBuffer(self.window)
        buffer.load_state_dict(state["buffer"])
        self._regressor.load_state_dict(state["regressor"])  # the last that can fail; it is all or nothing itself
        self._buffer, self._pulled, self._step = buffer, pulled, state["step"]
        self.too_old, self.missed_steps, self.last_gain = state["too_old"], state["missed_steps"], state["last_gain"]

    def _settings(self) -> State:
        names = ("mode", "share", "window", "keep", "entropy_weight", "entropy_floor", "exploration", "hidden")
        return {name: getattr(self, name) for name in (*names, "learning_rate", "seed")}


def level_of(scored: Scored) -> Level | None:
    """The level at the rollouts of this step; None if there are none."""
    is_new_N = scored.ages_Q[scored.rows_N] == 0
    if not is_new_N.any():
        return None
    rows_N = scored.rows_N[is_new_N]
    return Level(*(_mean_of_means(column_N[is_new_N], rows_N) for column_N in (scored.rewards_N, scored.entropies_N)))


def _mean_of_means(values_N: FloatArray, rows_N: IntArray) -> float:
    """Mean over groups; sorted, so that no bit depends on their order."""
    sizes_Q = np.bincount(rows_N)
    means_Q = np.bincount(rows_N, values_N)[sizes_Q > 0] / sizes_Q[sizes_Q > 0]
    return float(np.sort(means_Q).mean())


def arm_reward(before: Level, after: Level, *, entropy_weight: float, entropy_floor: float) -> float:
    """What a step brought: ``V' - V - entropy_weight 1[E > entropy_floor] (E' - E)``."""
    penalty = entropy_weight * (after.entropy - before.entropy) if before.entropy > entropy_floor else 0.0
    return after.reward - before.reward - penalty


def rollout_features(scored: Scored, uses_N: IntArray) -> FloatArray:
    """[N, F] of each rollout, in the order of :data:`FEATURES`; ``uses_N`` counts how often it was trained on.

    Raises:
        InvalidInputError: a number is not finite.
    """
    sizes_Q = np.bincount(scored.rows_N, minlength=len(scored.prompt_ids))
    sums_Q = np.bincount(scored.rows_N, scored.rewards_N, minlength=len(scored.prompt_ids))
    columns: dict[str, FloatArray | IntArray] = {
        "reward": scored.rewards_N,
        "entropy": scored.entropies_N,
        "clip_fraction": scored.clip_fractions_N,
        "log_length": np.log1p(scored.lengths_N),
        "truncated": scored.truncated_N.astype(np.float64),
        "age": scored.ages_Q[scored.rows_N],
        "uses": uses_N,
        "advantage": scored.advantages_N,
        "group_reward": (sums_Q / np.maximum(sizes_Q, 1))[scored.rows_N],
        "progress": np.full(len(scored), scored.progress),
    }
    features_NF = np.stack([columns[name] for name in FEATURES], axis=1).astype(np.float64)
    wrong = np.flatnonzero(~np.isfinite(features_NF).all(axis=0)).tolist()
    if wrong:
        raise InvalidInputError(
            "a feature of a rollout is not a finite number",
            got=", ".join(FEATURES[i] for i in wrong),
            allowed="finite numbers",
            fix="pass 0 where something was not measured",
        )
    return features_NF


def _taken(scored: Scored, chosen: IntArray) -> Scored:
    """These rollouts of all groups, in this order, without their answers."""
    arrays = [field.name for field in fields(Scored) if field.name.endswith("_N") and field.name != "answers_N"]
    return replace(scored, answers_N=None, **{name: getattr(scored, name)[chosen] for name in arrays})


def _check_numbers(numbers_N: IntArray) -> None:
    """Raise unless ascending numbers are distinct."""
    twice = np.flatnonzero(np.diff(numbers_N) == 0)
    if len(twice):
        got = f"number {numbers_N[twice[0]]}"
        raise InvalidInputError("a rollout stands twice", got=got, allowed="each once", fix="number rollouts anew")


def _pulled_from_state(state: State) -> Pulled | None:
    if not state:
        return None
    check_state({**state, "kind": Pulled.__name__}, Pulled.__name__, ("step", "features", "reward", "entropy"))
    shape = (len(np.atleast_1d(state["features"])), len(FEATURES))
    return Pulled(state["step"], Level(state["reward"], state["entropy"]), array_from_state(state, "features", shape))


ENTRY = SelectorEntry(
    ContextualBandit,
    ContextualBandit.NEEDS,
    row=Row(
        "gain of a rollout: perceptron on ten features, learnt from the change of the mean reward",
        AFTER,
        "a share of every group, or K rollouts of the last L steps",
        "what the perceptron has learnt; no closed form, no importance weights. The toy has nothing to gain: each run "
        "comes to prefer successes or failures, by chance, and the plot is the mean over runs",
        "CBS, arXiv 2602.08499",
        "seven of ten features are the paper's; network, exploration, defaults are a reconstruction",
    ),
)
