"""The policy of the regime ``pronunciation``: the trained model inside the package ``g2p-en``, spelling to phonemes.

A GRU reads the letters of a word and another writes phonemes of the CMU Pronouncing Dictionary (834,890 parameters,
Apache-2.0, by Kyubyong Park and Jongseok Kim). Nobody here trained it. Only its file of weights is read: importing the
package would download data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch

from allotment.errors import StateError
from allotment.lab.generation import Lab
from allotment.lab.recurrent_policy import RecurrentPolicy
from allotment.lab.regime import Regime
from allotment.lab.tokenizer import Tokenizer
from allotment.tasks.pronunciation import packaged_file

LETTERS = ("<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz")
PHONEMES = (
    *("<pad>", "<unk>", "<s>", "</s>", "AA0", "AA1", "AA2", "AE0", "AE1", "AE2", "AH0", "AH1", "AH2", "AO0", "AO1"),
    *("AO2", "AW0", "AW1", "AW2", "AY0", "AY1", "AY2", "B", "CH", "D", "DH", "EH0", "EH1", "EH2", "ER0", "ER1", "ER2"),
    *("EY0", "EY1", "EY2", "F", "G", "HH", "IH0", "IH1", "IH2", "IY0", "IY1", "IY2", "JH", "K", "L", "M", "N", "NG"),
    *("OW0", "OW1", "OW2", "OY0", "OY1", "OY2", "P", "R", "S", "SH", "T", "TH", "UH0", "UH1", "UH2", "UW", "UW0"),
    *("UW1", "UW2", "V", "W", "Y", "Z", "ZH"),
)
"""The numbers that the weights give letters and phonemes are their places in these tuples."""
PARAMETERS = {
    **{
        f"{unit}.{ours}": f"{prefix}_{theirs}"
        for unit, prefix in (("reader", "enc"), ("writer", "dec"))
        for ours, theirs in (
            ("tokens.weight", "emb"),
            ("inputs.weight", "w_ih"),
            ("inputs.bias", "b_ih"),
            ("recurrent.weight", "w_hh"),
            ("recurrent.bias", "b_hh"),
        )
    },
    "head.weight": "fc_w",
    "head.bias": "fc_b",
}
"""Our names of the parameters to those in the package's file."""


class Phonemes(Tokenizer):
    """Letters of a word in, phonemes out; a completion as text has a space between phonemes."""

    pad, answer, end = (PHONEMES.index(token) for token in ("<pad>", "<s>", "</s>"))

    def __init__(self) -> None:
        super().__init__(PHONEMES)

    def encode_prompt(self, prompt: str) -> list[int]:
        """Numbers of the letters and of the end of the word; characters other than a to z are unknown to the model."""
        return [LETTERS.index(c) if c in LETTERS else LETTERS.index("<unk>") for c in (*prompt, "</s>")]

    def encode_answer(self, text: str) -> list[int]:
        """Numbers of the phonemes, with the end token."""
        return [*self._lookup(text.split(), text), self.end]

    def decode(self, tokens: Iterable[int]) -> str:
        """The phonemes up to, without, the first end token."""
        return " ".join(self._until_end(tokens))


def pronunciation_lab(regime: Regime) -> Lab:
    """The lab with the published weights. Raises MissingExtraError: the extra ``g2p`` is not installed; StateError: the
    package holds other weights.
    """
    file = packaged_file("g2p-en", "g2p_en/checkpoint20.npz")
    with np.load(file, allow_pickle=False) as arrays:
        return Lab(policy_of({name: arrays[name] for name in arrays.files}, file), Phonemes(), regime)


def policy_of(arrays: Mapping[str, np.ndarray], file: Path) -> RecurrentPolicy:
    """The policy with the arrays of ``file``, by their published names."""
    with torch.device("meta"):
        policy = RecurrentPolicy(len(LETTERS), len(PHONEMES), width=256)
    expected = {PARAMETERS[name]: tuple(tensor.shape) for name, tensor in policy.state_dict().items()}
    got = {name: array.shape for name, array in arrays.items()}
    if got != expected:
        raise StateError("the file of weights holds other arrays", got=f"{got} in {file}", allowed=expected, fix=FIX)
    state = {name: torch.from_numpy(np.array(arrays[theirs])) for name, theirs in PARAMETERS.items()}
    policy.load_state_dict(state, assign=True)
    return policy.requires_grad_()


FIX = "pip install g2p-en==2.1.0"
