"""verl is 2 GB and not part of the default installation: ``make test-verl``."""

from importlib.metadata import PackageNotFoundError, version

try:  # not find_spec: this folder itself would be found
    version("verl")
except PackageNotFoundError:
    collect_ignore_glob = ["test_*.py"]
