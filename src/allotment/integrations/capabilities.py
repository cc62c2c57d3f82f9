"""What each trainer with an adapter can carry out. Importing this loads none of them."""

from __future__ import annotations

from dataclasses import replace

from allotment.planning.contract import Capability

TRL = Capability(
    "TRL",
    told=frozenset({"scores", "lengths"}),
    columns=frozenset({"truncated"}),
    offers=frozenset({"embeddings"}),
    objectives=frozenset({"rloo", "dr_grpo", "grpo", "on-policy-dpo"}),
)
"""One generation a batch, of a fixed number of rollouts."""
TRL_DPO = replace(
    TRL, name="TRL's DPO", told=frozenset(), selections=False, weights=False, baselines=False, leaves_out=False
)
"""Its pairs are made of all rollouts of a prompt, each prompt alike."""
VERL = Capability(
    "verl",
    told=frozenset({"lengths"}),
    objectives=frozenset({"rloo", "dr_grpo", "grpo"}),
)
"""One generation a batch, of a fixed number of rollouts; the objectives are its ``allotment_`` estimators."""
GENERIC = Capability(
    "allotment.integrations.generic",
    in_tokens=True,
    any_size=True,
    selections=False,
    told=frozenset({"scores", "lengths", "answers"}),
)
"""Three functions between a data loader, a generation and a loss; what is told is the caller's to bring."""
