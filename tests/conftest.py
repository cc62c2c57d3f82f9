"""What all tests share: benchmarks can be imported; hypothesis takes its time, the same examples at every run in CI."""

import os
import sys
from pathlib import Path

from hypothesis import settings

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

settings.register_profile("allotment", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("allotment")
