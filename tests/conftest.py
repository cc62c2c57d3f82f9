"""Hypothesis: examples may take any time, the machine is shared; in CI they are the same at every run."""

import os

from hypothesis import settings

settings.register_profile("allotment", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("allotment")
