"""Where verl is not installed, which is the rule."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

import pytest

from allotment.errors import MissingExtraError


def test_without_verl_its_extra_is_named() -> None:
    try:
        pytest.skip(f"verl {version('verl')} is installed")
    except PackageNotFoundError:
        with pytest.raises(MissingExtraError, match=r"pip install 'allotment\[verl\]'"):
            import_module("allotment.integrations.verl")
