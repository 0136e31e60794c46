"""How the suite uses two cores: one thread a process, and the longest files first."""

import os

import pytest

# Before any test imports torch: waiting threads of several processes would stall them all.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    # pytest-xdist would start the files with the fewest tests last, which are the longest.
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("first") is None)
