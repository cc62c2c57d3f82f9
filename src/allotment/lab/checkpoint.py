"""The warm-started policy as package data; states of modules and optimisers."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from allotment.errors import StateError
from allotment.lab.generation import Lab
from allotment.lab.policy import Policy, PolicySize
from allotment.lab.pronunciation import pronunciation_lab
from allotment.lab.regime import PRONUNCIATION, Regime, regime_named
from allotment.lab.tokenizer import Tokenizer
from allotment.state import State, decode_json, load_state

KIND = "lab-policy"
SizeName = Literal["normal", "small"]


def shipped_policy(regime: str, size: SizeName = "normal") -> Path:
    """Where the warm-started policy of a regime lies inside the package."""
    suffix = "" if size == "normal" else f"-{size}"
    return Path(__file__).parent / "data" / f"{regime_named(regime).name}{suffix}.safetensors"


def load_lab(regime: str | Regime, path: Path | None = None) -> Lab:
    """The lab with the policy of a regime, which is shipped or another package's, or with the policy in ``path``.
    Raises StateError: the file is damaged or belongs to another regime.
    """
    regime = regime if isinstance(regime, Regime) else regime_named(regime)
    if path is None and regime.name == PRONUNCIATION.name:
        return pronunciation_lab(regime)
    path = path or shipped_policy(regime.name)
    state = load_state(path, kind=KIND)
    if state["regime"] != regime.name:
        raise StateError(
            f"the policy in {path} was trained for another regime",
            got=state["regime"],
            allowed=regime.name,
            fix="pass the regime it was trained for",
        )
    tokenizer = Tokenizer(decode_json(state["vocabulary"]))
    policy = Policy(PolicySize(len(tokenizer), **state["size"]))
    load_parameters(policy, state["parameters"])
    return Lab(policy, tokenizer, regime)


def parameters_state(policy: nn.Module) -> State:
    """The parameters as arrays by name."""
    return {name: tensor.detach().numpy().copy() for name, tensor in policy.state_dict().items()}


def load_parameters(policy: nn.Module, state: State) -> None:
    """Take over what :func:`parameters_state` gave."""
    policy.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in state.items()})


def optimizer_state(optimizer: torch.optim.Optimizer) -> State:
    """The moments as arrays, by number of the parameter and name; settings such as the learning rate are not kept."""
    moments = optimizer.state_dict()["state"]
    return {str(i): {name: tensor.numpy().copy() for name, tensor in entry.items()} for i, entry in moments.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, state: State) -> None:
    """Take over what :func:`optimizer_state` gave."""
    moments = {
        int(i): {name: torch.from_numpy(np.array(array)) for name, array in entry.items()} for i, entry in state.items()
    }
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
