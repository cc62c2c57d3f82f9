"""LoRA with peft: adapters are trained in place of the model's own weights."""

from __future__ import annotations

import copy
import difflib
from dataclasses import fields
from typing import Any

from allotment.errors import ConfigError, needs_extra


def lora_config(settings: dict[str, Any] | None) -> Any:
    """The ``LoraConfig`` of peft with these settings; None where none are given.

    Raises:
        MissingExtraError: peft is not installed.
        ConfigError: peft has no such setting, or refuses a value.
    """
    if settings is None:
        return None
    with needs_extra("trl"):
        from peft import LoraConfig
    known = {field.name for field in fields(LoraConfig) if field.init}
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            allowed = "fields of peft's LoraConfig, such as r, lora_alpha, lora_dropout, target_modules"
            raise ConfigError(
                "peft has no such setting of LoRA", got=name, allowed=allowed, fix=f"did you mean {near!r}?"
            )
    try:
        return LoraConfig(**{"task_type": "CAUSAL_LM", **settings})
    except (TypeError, ValueError) as error:
        raise refused(settings, error) from error


def check_fits(adapter: Any, model: str, settings: dict[str, Any]) -> None:
    """Put the adapter on the model's layers without their weights.

    Raises:
        ConfigError: peft refuses the settings for this model.
        OSError: the model's configuration cannot be loaded.
    """
    import torch
    from peft import get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = AutoConfig.from_pretrained(model)
    with torch.device("meta"):
        layers: Any = AutoModelForCausalLM.from_config(shape)  # type: ignore[no-untyped-call]
        try:
            get_peft_model(layers, copy.deepcopy(adapter))
        except (TypeError, ValueError) as error:
            raise refused(settings, error) from error


def refused(settings: dict[str, Any], error: Exception) -> ConfigError:
    """The error of settings that peft, or peft with this model, refuses."""
    return ConfigError(
        "these settings of LoRA cannot be used",
        got=f"{settings}: {error}",
        allowed="what peft's LoraConfig takes; target_modules names layers of the model",
        fix="""change --lora, such as '{"r": 8, "target_modules": "all-linear"}'""",
    )
