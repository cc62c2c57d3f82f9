"""Learning curves of the lab, paired by seed: ``python benchmarks/learning.py OUT_DIR [--seeds 8] [--steps 100]``.

``allotment compare`` with the planners that have a page in the documentation; further flags are its own. A second call
with more steps continues the runs.
"""

from __future__ import annotations

import sys

from allotment.cli.main import main

PLANNERS = ("vip", "vip-moments", "vip-second-look", "vip-tokens", "vip-paper")

if __name__ == "__main__":
    sys.exit(main(["compare", "--seeds", "8", *sys.argv[1:], "--planners", *PLANNERS]))
