"""The rollout function: slime's generation of a batch of groups, whatever their sizes; ``--rollout-function-path``."""

from __future__ import annotations

import asyncio
from typing import Any

from allotment.integrations.slime.needed import needs_slime

with needs_slime():
    from slime.observability.metric_utils import compute_pass_rate  # type: ignore[import-not-found]
    from slime.rollout import sglang_rollout  # type: ignore[import-not-found]
    from slime.rollout.base_types import RolloutFnEvalOutput, RolloutFnTrainOutput  # type: ignore[import-not-found]
    from slime.utils.async_utils import run  # type: ignore[import-not-found]
    from slime.utils.misc import load_function  # type: ignore[import-not-found]


def generate_rollout(
    args: Any, rollout_id: int, data_source: Any, evaluation: bool = False
) -> RolloutFnTrainOutput | RolloutFnEvalOutput:
    """All rollouts of a batch, or slime's own evaluation with pass@k.

    ``--custom-generate-function-path``, reward models, ``--group-rm``, sample hooks, ``--rollout-sample-filter-path``
    and ``--rollout-all-samples-process-path`` are slime's, as in its own function.
    """
    if evaluation:
        return with_pass_rates(args, sglang_rollout.generate_rollout(args, rollout_id, data_source, evaluation=True))
    groups = run(_generated(args, data_source.get_samples(args.rollout_batch_size)))
    if args.rollout_sample_filter_path is not None:
        load_function(args.rollout_sample_filter_path)(args, groups)
    if args.rollout_all_samples_process_path is not None:
        load_function(args.rollout_all_samples_process_path)(args, groups, data_source)
    return RolloutFnTrainOutput(samples=groups, metrics={})


async def _generated(args: Any, groups: list[list[Any]]) -> list[list[Any]]:
    """The groups with responses and rewards, in the order of the batch."""
    state = sglang_rollout.GenerateState(args)
    _reseed(args, state, max(map(len, groups)))
    state.submit_generate_tasks(groups)
    try:
        done: list[list[Any]] = await asyncio.gather(*state.pendings)
    finally:
        for task in state.pendings:
            task.cancel()
        state.reset()
    return sorted(done, key=lambda group: group[0][0].index if isinstance(group[0], list) else group[0].index)


def _reseed(args: Any, state: Any, size: int) -> None:
    """Seeds for groups larger than n, where slime gives each rollout of a group its own."""
    seeds = getattr(state, "group_sampling_seeds", None)
    if seeds is not None:
        seeds.extend(args.rollout_seed + number for number in range(len(seeds), size))


def with_pass_rates(args: Any, output: RolloutFnEvalOutput) -> RolloutFnEvalOutput:
    """An evaluation with pass@k of every data set whose prompts have several responses, by slime's own estimate."""
    sizes = {dataset.name: dataset.n_samples_per_eval_prompt for dataset in getattr(args, "eval_datasets", None) or []}
    metrics = dict(output.metrics or {})
    for name, found in output.data.items():
        size = sizes.get(name) or 1
        if size > 1 and len(found["rewards"]) % size == 0:
            rates = compute_pass_rate(flat_rewards=found["rewards"], group_size=size)
            metrics |= {f"eval/{name}-{key}": rate for key, rate in rates.items()}
    output.metrics = metrics
    return output
