"""slime: a number of rollouts for each prompt, through slime's own import paths.

    --data-source-path allotment.integrations.slime.AllotmentDataSource
    --rollout-function-path allotment.integrations.slime.generate_rollout
    --custom-reward-post-process-path allotment.integrations.slime.reward_post_process
    --custom-config-path allotment.yaml        # a block ``allotment``: planner, planner_kwargs, ...

Importing this needs no slime; the data source and the rollout function do. See docs/slime.md.
"""

from typing import TYPE_CHECKING

from allotment.lazy import lazily

if TYPE_CHECKING:
    from allotment.integrations.slime.checks import check_args
    from allotment.integrations.slime.generation import generate_rollout
    from allotment.integrations.slime.hooks import reward_post_process
    from allotment.integrations.slime.loss import sum_of_tokens
    from allotment.integrations.slime.session import Session
    from allotment.integrations.slime.settings import Settings
    from allotment.integrations.slime.source import AllotmentDataSource

__getattr__ = lazily(
    __name__,
    {
        "checks": "check_args",
        "generation": "generate_rollout",
        "hooks": "reward_post_process",
        "loss": "sum_of_tokens",
        "session": "Session",
        "settings": "Settings",
        "source": "AllotmentDataSource",
    },
)

__all__ = [
    "AllotmentDataSource",
    "Session",
    "Settings",
    "check_args",
    "generate_rollout",
    "reward_post_process",
    "sum_of_tokens",
]
