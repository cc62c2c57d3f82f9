"""TRL: a number of rollouts for each prompt in ``GRPOTrainer``, ``RLOOTrainer`` and classes derived from them.

    from allotment.integrations.trl import AllotmentGRPOConfig, AllotmentGRPOTrainer

Needs ``pip install 'allotment[trl]'``; see docs/trl.md.
"""

import logging

from allotment.errors import needs_extra

with needs_extra("trl"):
    from allotment.integrations.trl.versions import check_trl

    _warning = check_trl()
    from allotment.integrations.trl.config import AllotmentArguments, AllotmentGRPOConfig, AllotmentRLOOConfig
    from allotment.integrations.trl.trainer import (
        AllotmentGRPOTrainer,
        AllotmentMixin,
        AllotmentRLOOTrainer,
        with_allotment,
    )

if _warning is not None:
    logging.getLogger("allotment").warning(_warning)

__all__ = [
    "AllotmentArguments",
    "AllotmentGRPOConfig",
    "AllotmentGRPOTrainer",
    "AllotmentMixin",
    "AllotmentRLOOConfig",
    "AllotmentRLOOTrainer",
    "with_allotment",
]
