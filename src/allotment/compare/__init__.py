"""Planners x budgets x seeds, run side by side and compared with uniform, pair by pair.

Importing this loads no torch.
"""

from allotment.compare.figures import Comparison, Entry, Job, Line, finished_runs, lines
from allotment.compare.running import Ended, on_processes
from allotment.compare.table import as_json, as_text

__all__ = [
    "Comparison",
    "Ended",
    "Entry",
    "Job",
    "Line",
    "as_json",
    "as_text",
    "finished_runs",
    "lines",
    "on_processes",
]
