"""Names of methods: one table a kind, one line a method. What a name stands for is declared in the method's own file.

A table maps a name to the place of its declaration, which is imported when the name is used. Another package adds its
own with :meth:`Registry.register`, in a module that its entry point of the group ``allotment`` names.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from allotment.errors import ConfigError

if TYPE_CHECKING:
    from allotment.audit.formats.base import LogFormat
    from allotment.learning.objective import ObjectiveEntry
    from allotment.planning.contract import PlannerEntry
    from allotment.prediction.posteriors import PredictorEntry
    from allotment.selection import SelectorEntry
    from allotment.trainers import TrainerEntry

Entry = TypeVar("Entry")


BEFORE, AFTER = "before generation", "after verification"
EXACT = "exactly C"
UNBIASED = "the mean success probability: 1"
ALIKE = (
    "the mean success probability with `rloo` and `prompt_mean`: 1; where rollouts count alike (token or sequence "
    "means) `n / mean n`"
)


@dataclass(frozen=True)
class Row:
    """A method in words: its row in docs/methods.md."""

    predicts: str
    """What it predicts before a step."""
    decides: str
    """When it decides."""
    keeps: str
    """The budget it keeps."""
    optimises: str
    """What it really optimises: the weight of a prompt relative to the gradient of its success probability."""
    source: str
    """Paper or page."""
    deviations: str
    """What differs from the source."""

    @classmethod
    def before(
        cls,
        predicts: str,
        source: str,
        deviations: str,
        *,
        decides: str = BEFORE,
        optimises: str = ALIKE,
        keeps: str = EXACT,
    ) -> Row:
        """The row of a planner that decides before generation and spends its budget exactly, if not said otherwise."""
        return cls(predicts, decides, keeps, optimises, source, deviations)


class Registry(Generic[Entry]):
    """The methods of one kind by name, in the order of the table; those registered later come last.

    Args:
        kind: what they are, in a word.
        built_in: name to ``module:attribute``.
        aliases: earlier names, which still work with a ``DeprecationWarning``, to those of the table.
    """

    def __init__(self, kind: str, built_in: Mapping[str, str], aliases: Mapping[str, str] | None = None) -> None:
        self.kind = kind
        self._aliases = dict(aliases or {})
        self.built_in = tuple(built_in)
        """The names that come with the library."""
        self._places: dict[str, str] = dict(built_in)
        self._entries: dict[str, Entry] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Every name, those of other packages too."""
        load_plugins()
        return tuple(dict.fromkeys((*self._places, *self._entries)))

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[tuple[str, Entry]]:
        return ((name, self[name]) for name in self.names)

    def __getitem__(self, name: str) -> Entry:
        """What is declared under ``name``; ``-`` and ``_`` are the same in it.

        Raises:
            ConfigError: there is no such name; the nearest is named.
        """
        name = self.canonical(name)
        if name not in self._entries:
            module, _, attribute = self._places[name].partition(":")
            self._entries[name] = getattr(import_module(module), attribute)
        return self._entries[name]

    def canonical(self, name: object) -> str:
        """``name`` as the table spells it.

        Raises:
            ConfigError: there is no such name.
        """
        if isinstance(name, str) and name in self._aliases:
            warnings.warn(f"the {self.kind} {name!r} is now {self._aliases[name]!r}", DeprecationWarning, stacklevel=3)
            name = self._aliases[name]
        spelt = {known.replace("_", "-"): known for known in self.names}
        found = spelt.get(name.replace("_", "-")) if isinstance(name, str) else None
        if found is None:
            near = get_close_matches(str(name), self.names, n=1)
            fix = f"did you mean {near[0]!r}?" if near else "choose one of them"
            raise ConfigError(f"unknown {self.kind}", got=repr(name), allowed=", ".join(self.names), fix=fix)
        return found

    def register(self, name: str, entry: Entry) -> None:
        """Add a method of another package.

        Raises:
            ConfigError: the name is taken.
        """
        if name.replace("_", "-") in {known.replace("_", "-") for known in (*self._places, *self._entries)}:
            fix = "choose another name"
            raise ConfigError(f"this {self.kind} is registered already", got=repr(name), allowed="a new name", fix=fix)
        self._entries[name] = entry

    def unregister(self, name: str) -> None:
        """Take back what :meth:`register` added."""
        if name not in self._places:
            self._entries.pop(name, None)


@cache
def load_plugins() -> tuple[Any, ...]:
    """Import the modules that other packages name in the entry-point group ``allotment``, once."""
    return tuple(point.load() for point in entry_points(group="allotment"))


_METHODS = "allotment.methods"
PLANNERS: Registry[PlannerEntry] = Registry(
    "planner",
    {
        "vip": "allotment.planning.variants:DEFAULT",
        "joint": "allotment.planning.variants:JOINT",
        "joint-scores": "allotment.planning.variants:JOINT_SCORES",
        "vip-moments": "allotment.planning.variants:MOMENTS",
        "vip-paper": "allotment.planning.variants:PAPER",
        "vip-second-look": "allotment.planning.variants:SECOND_LOOK",
        "vip-tokens": "allotment.planning.variants:TOKENS",
        "uniform": "allotment.planning.baselines:UNIFORM",
        "inverse-accuracy": "allotment.planning.baselines:INVERSE_ACCURACY",
        "inverse-variance": "allotment.planning.baselines:INVERSE_VARIANCE",
        "ridge": "allotment.planning.variants:RIDGE",
        "reward-variance": "allotment.planning.reward_variance:ENTRY",
        "oracle": "allotment.planning.baselines:ORACLE",
        "coba-rl": f"{_METHODS}.planners.coba_rl:ENTRY",
        "knapsack": f"{_METHODS}.planners.knapsack:ENTRY",
        "gvm": f"{_METHODS}.planners.gvm:ENTRY",
        "dynamic-pruning": f"{_METHODS}.planners.dynamic_pruning:ENTRY",
        "optpo": f"{_METHODS}.planners.optpo:ENTRY",
        "reinforce-ada": f"{_METHODS}.planners.reinforce_ada:ENTRY",
        "reinforce-ada-est": f"{_METHODS}.planners.reinforce_ada_est:ENTRY",
        "dapo": f"{_METHODS}.planners.dapo:ENTRY",
        "greso": f"{_METHODS}.planners.greso:ENTRY",
        "mopps": f"{_METHODS}.planners.mopps:ENTRY",
        "pilot-commit": f"{_METHODS}.planners.pilot_commit:ENTRY",
        "spo": f"{_METHODS}.planners.spo:ENTRY",
    },
)
SELECTORS: Registry[SelectorEntry] = Registry(
    "selector",
    {
        "pods": f"{_METHODS}.selectors.subsets:PODS_ENTRY",
        "max-reward": f"{_METHODS}.selectors.subsets:MAX_REWARD",
        "random": f"{_METHODS}.selectors.subsets:RANDOM",
        "completion-pruning": f"{_METHODS}.selectors.completion_pruning:ENTRY",
        "contextual-bandit": f"{_METHODS}.selectors.contextual_bandit:ENTRY",
    },
)
PREDICTORS: Registry[PredictorEntry] = Registry(
    "predictor",
    {
        "hierarchical": "allotment.prediction.hierarchical:ENTRY",
        "gaussian-process": "allotment.prediction.gaussian_process:ENTRY",
        "discounted-counts": "allotment.prediction.baselines:DISCOUNTED_COUNTS",
        "last-value": "allotment.prediction.baselines:LAST_VALUE",
        "global-mean": "allotment.prediction.baselines:GLOBAL_MEAN",
        "ridge": "allotment.prediction.baselines:RIDGE",
        "k-nearest": "allotment.prediction.baselines:K_NEAREST",
    },
    {"default": "hierarchical", "vip": "hierarchical", "paper": "gaussian-process", "counts": "discounted-counts"},
)
OBJECTIVES: Registry[ObjectiveEntry] = Registry(
    "objective",
    {
        "grpo": "allotment.learning.objective:GRPO",
        "dr_grpo": "allotment.learning.objective:DR_GRPO",
        "rloo": "allotment.learning.objective:RLOO",
        "gdpo": f"{_METHODS}.objectives.gdpo:ENTRY",
        "jspo": f"{_METHODS}.objectives.jspo:ENTRY",
        "krpo": f"{_METHODS}.objectives.krpo:ENTRY",
        "divergence-ppo": f"{_METHODS}.objectives.divergence:ENTRY",
        "jackpot": f"{_METHODS}.objectives.jackpot:ENTRY",
        "flowrl": f"{_METHODS}.objectives.flowrl:ENTRY",
        "capo": f"{_METHODS}.objectives.capo:ENTRY",
        "on-policy-dpo": f"{_METHODS}.objectives.preference:ENTRY",
        "representation-reward": "allotment.lab.representation_reward:ENTRY",
        "ml-irl": "allotment.lab.ml_irl:ENTRY",
    },
)
LOG_FORMATS: Registry[LogFormat] = Registry(
    "log format",
    {
        "counts": "allotment.audit.formats.counts:COUNTS",
        "run": "allotment.audit.formats.counts:RUN",
        "verl": "allotment.audit.formats.training:VERL",
        "trl": "allotment.audit.formats.training:TRL",
        "nemo-rl": "allotment.audit.formats.training:NEMO",
        "prime-rl": "allotment.audit.formats.trajectories:PRIME_RL",
        "slime": "allotment.audit.formats.training:SLIME",
        "slime-train": "allotment.audit.formats.training:SLIME_TRAIN",
        "skyrl": "allotment.audit.formats.trajectories:SKYRL",
        "skyrl-agent": "allotment.audit.formats.trajectories:SKYRL_AGENT",
        "areal": "allotment.audit.formats.trajectories:AREAL",
        "open-instruct": "allotment.audit.formats.trajectories:OPEN_INSTRUCT",
        "tinker-cookbook": "allotment.audit.formats.trajectories:TINKER",
        "tinker-cookbook-eval": "allotment.audit.formats.evaluations:TINKER_EVAL",
        "verifiers": "allotment.audit.formats.evaluations:VERIFIERS",
        "lm-eval": "allotment.audit.formats.evaluations:LM_EVAL",
        "inspect-ai": "allotment.audit.formats.evaluations:INSPECT",
        "wandb": "allotment.audit.formats.evaluations:WANDB",
        "columns": "allotment.audit.formats.finding:NAMED",
        "table": "allotment.audit.formats.finding:TABLE",
    },
)
TRAINERS: Registry[TrainerEntry] = Registry(
    "trainer",
    {
        "lab": "allotment.lab.trainer:TRAINER",
        "trl": "allotment.trainers.trl.trainer:TRAINER",
    },
)
