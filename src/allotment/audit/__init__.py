"""How good is a predictor? Replay the success log of a real run, and judge what it would have allocated.

    log = read_log("rollouts.jsonl")
    result = replay(log, DiscountedCounts())
    result.by_range()["2"].variance_ratio        # second visit: gradient variance relative to uniform

    summarise(result).verdict.text               # what it is worth, in rollouts, and how sure that is

Each batch is predicted before it is seen. ``allotment audit`` is the same on the command line. Importing this loads
no torch.
"""

from allotment.audit.figures import Figures
from allotment.audit.formats.base import Columns, Source
from allotment.audit.log import Log
from allotment.audit.reading import find_sources, read_log, read_source
from allotment.audit.replaying import RANGES, Replay, replay
from allotment.audit.settings import Settings
from allotment.audit.summary import Summary, summarise

__all__ = [
    "RANGES",
    "Columns",
    "Figures",
    "Log",
    "Replay",
    "Settings",
    "Source",
    "Summary",
    "find_sources",
    "read_log",
    "read_source",
    "replay",
    "summarise",
]
