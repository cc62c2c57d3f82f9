"""Score sketches of a Hugging Face causal language model, for planners that price by gradient moments.

What :mod:`allotment.learning.sketches` needs, taken from one forward pass by hooks; see docs/gradient_moments.md.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from allotment.errors import ConfigError
from allotment.learning import SketchDirections, last_layer_scores, layer_scores


class ScoreSketch:
    """Derivatives of rollouts' log-probabilities along K fixed random directions of one matrix of a model.

    ``last-layer``: the output matrix, as output matrix alone where it is tied to the embeddings; no backward pass.
    ``last-block``: the matrix that brings the result of the last decoder layer's attention back (``o_proj``,
    ``c_proj``, ``dense``, ...): the last linear module within its attention that has ``hidden_size`` outputs. In a
    layer without attention it is the last such module of the layer. The backward pass ends there. A matrix with an
    adapter is sketched as the sum of both.

    Directions are a function of ``seed`` and the size of the matrix. The model may be a ``PreTrainedModel`` or wrapped
    by PEFT; unwrap it from DDP or DeepSpeed first.

    Raises:
        ConfigError: the model has no such matrix.
    """

    def __init__(
        self, model: nn.Module, kind: Literal["last-layer", "last-block"], *, sketches: int = 16, seed: int = 0
    ) -> None:
        self.kind = kind
        outputs, inputs = _sizes(self._matrix(model))
        self.directions = SketchDirections.random(sketches, outputs, inputs, seed=seed)

    def __call__(
        self,
        model: nn.Module,
        prompt_ids_NP: Tensor,
        prompt_mask_NP: Tensor,
        completion_ids_NT: Tensor,
        completion_mask_NT: Tensor,
        *,
        temperature: float,
        batch_size: int,
    ) -> Tensor:
        """[N, K] float32, on the device of the model.

        Prompts are padded on the left, completions on the right. ``completion_mask_NT``: [N, T] the tokens the model
        drew; tokens between them, such as the results of tools, are attended to and not counted. Logits are divided by
        ``temperature``. ``batch_size`` rows go through the model at once. Scores are of the model in evaluation mode,
        which also switches gradient checkpointing off; afterwards the model is as it was. Under mixed precision, call
        it within the trainer's autocast.

        Raises:
            ConfigError: the matrix found is not used once for every token, or the model gives no logits.
        """
        matrix, parts = self._matrix(model), []
        with _evaluating(model):
            for first in range(0, len(prompt_ids_NP), batch_size):
                rows = slice(first, first + batch_size)
                given = (t[rows] for t in (prompt_ids_NP, prompt_mask_NP, completion_ids_NT, completion_mask_NT))
                parts.append(self._scores(model, matrix, *given, temperature=temperature))
        return torch.cat(parts)

    def _scores(
        self,
        model: nn.Module,
        matrix: nn.Module,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        tokens_NT: Tensor,
        mask_NT: Tensor,
        *,
        temperature: float,
    ) -> Tensor:
        kept = tokens_NT.shape[1] + 1  # the completion's places, and the one from which its first token is drawn
        attended = mask_NT.long().flip(1).cummax(1).values.flip(1)
        batch = {
            "input_ids": torch.cat([prompt_ids, tokens_NT], 1),
            "attention_mask": torch.cat([prompt_mask, attended.to(prompt_mask.dtype)], 1),
            "use_cache": False,
        }
        if _keeps_logits(model):
            batch["logits_to_keep"] = kept
        with torch.no_grad(), _tapped(matrix, from_there=self.kind == "last-block") as tap:
            logits_NTV = _logits(model(**batch))[:, -kept:-1].float() / temperature
            tap.check(prompt_ids, kept)
            inputs_NTI = tap.inputs[0][:, -kept:-1]
            directions = self.directions.to(inputs_NTI.device)
            if self.kind == "last-layer":
                return last_layer_scores(logits_NTV, inputs_NTI, tokens_NT, mask_NT, directions) / temperature
            taken_NT = logits_NTV.gather(2, tokens_NT[:, :, None]).squeeze(2) - logits_NTV.logsumexp(2)
            log_p = torch.where(mask_NT.bool(), taken_NT, 0.0).sum()
            (gradients_NTO,) = torch.autograd.grad(log_p, tap.outputs[0])
        # Above the matrix no token sees another, so only the places that draw counted tokens have gradients.
        return layer_scores(inputs_NTI, gradients_NTO[:, -kept:-1], mask_NT, directions)

    def _matrix(self, model: nn.Module) -> nn.Module:
        found = _output_matrix(model) if self.kind == "last-layer" else _last_attention_output(model)
        if found is not None:
            return found
        other = "last-block" if self.kind == "last-layer" else "last-layer"
        raise ConfigError(
            f"no matrix for the score sketch {self.kind!r} is found in the model",
            got=type(model).__name__,
            allowed="a causal language model of Hugging Face with linear modules",
            fix=f"sketch {other!r}, or take a planner without score sketches",
        )


@dataclass
class _Tap:
    """What went into a module, and what came out of it where the backward pass ends."""

    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)

    def check(self, prompt_ids: Tensor, kept: int) -> None:
        """Refuse a module that was not called once with a row of vectors for each rollout."""
        shapes = [tuple(x.shape) for x in self.inputs]
        if len(shapes) != 1 or len(shapes[0]) != 3 or shapes[0][0] != len(prompt_ids) or shapes[0][1] < kept:
            raise ConfigError(
                "the matrix found for score sketches is not used once for every token",
                got=f"inputs of shapes {shapes}",
                allowed=f"one of shape ({len(prompt_ids)}, at least {kept}, width)",
                fix="take the other of 'last-layer' and 'last-block', or a planner without score sketches",
            )


@contextmanager
def _tapped(module: nn.Module, *, from_there: bool) -> Iterator[_Tap]:
    """Record a module's inputs; if ``from_there``, autograd starts at its output. Call it under ``no_grad``."""
    tap = _Tap()

    def record(_: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> Tensor | None:
        tap.inputs.append(given[0].detach())
        if not from_there:
            return None
        torch.set_grad_enabled(True)  # until the surrounding no_grad ends
        tap.outputs.append(made.detach().requires_grad_())
        return tap.outputs[-1]

    handle = module.register_forward_hook(record)
    try:
        yield tap
    finally:
        handle.remove()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; each module gets its own mode back."""
    with ExitStack() as stack:
        for module in model.modules():
            stack.callback(setattr, module, "training", module.training)
        model.eval()
        yield


def _keeps_logits(model: Any) -> bool:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(inner.forward).parameters


def _logits(output: Any) -> Tensor:
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    raise ConfigError(
        "score sketches need the model's logits",
        got=f"a {type(output).__name__} without any",
        allowed="a causal language model of Hugging Face",
        fix="take a planner without score sketches",
    )


def _output_matrix(model: Any) -> nn.Module | None:
    found = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return found if isinstance(found, nn.Module) and _is_matrix(found) else None


def _last_attention_output(model: Any) -> nn.Module | None:
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "get_text_config"):
        return None
    text = config.get_text_config()
    layers = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == text.num_hidden_layers]
    if not layers:
        return None
    last = layers[0][-1]
    attentions = [child for name, child in last.named_children() if "attn" in name or "attention" in name]
    for part in (*reversed(attentions), last):
        matrices = [m for m in _matrices(part) if _sizes(m)[0] == text.hidden_size]
        if matrices:
            return matrices[-1]
    return None


def _matrices(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost linear modules in module order: of one with an adapter, the whole."""
    if _is_matrix(module):
        yield module
    else:
        for child in module.children():
            yield from _matrices(child)


def _is_matrix(module: nn.Module) -> bool:
    return any(hasattr(module, name) for name in ("out_features", "nf"))


def _sizes(matrix: Any) -> tuple[int, int]:
    """Outputs and inputs: of ``nn.Linear`` and what imitates it, or GPT-2's ``Conv1D``."""
    return (matrix.out_features, matrix.in_features) if hasattr(matrix, "out_features") else (matrix.nf, matrix.nx)
