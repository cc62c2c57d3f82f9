"""Hand-made run directories."""

import pytest
from report_rows import write_run_directory


@pytest.fixture
def write_run(tmp_path):
    """Writes a run directory of 20 steps evaluated at 0, 10 and 20, and hands back its path."""
    return lambda name, **contents: write_run_directory(tmp_path / name, **contents)
