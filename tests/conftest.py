"""How the suite uses two cores: one thread a process, and the longest files first."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Before any test imports torch: waiting threads of several processes would stall them all.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Other work of the machine makes an example slow, which is no fault of the code.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")


def pytest_configure(config: pytest.Config) -> None:
    # pytest-xdist would start the files with the fewest tests last, which are the longest.
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("first") is None)


@pytest.fixture(scope="session", autouse=True)
def _own_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Each process works in a folder of its own that shows the checkout: `.work` is in the current folder, and two
    processes that prepare the same cases would take each other's."""
    root, folder = Path(__file__).parent.parent, tmp_path_factory.mktemp("checkout")
    for path in root.iterdir():
        if not path.name.startswith("."):
            (folder / path.name).symlink_to(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield
