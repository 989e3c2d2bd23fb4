"""Shared fixtures: reference data outside the repository, and one set of smoke artifacts for all page tests."""

import os
from pathlib import Path

import pytest

from golden_files import Goldens

from astroclip.core.config import find_root, shared_root

# Tests run many processes side by side: one thread each unless the caller says otherwise.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault(
    "OMP_WAIT_POLICY", "PASSIVE"
)  # threads of a compiled kernel must not spin on torch's cores


@pytest.fixture(scope="session")
def root() -> Path:
    "The repository's root."
    folder = find_root(Path(__file__).parent)
    assert folder is not None
    return folder


@pytest.fixture
def one_thread():
    "torch on one thread: sums in one order, so that two trainings can be compared bit by bit."
    import torch

    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


@pytest.fixture(scope="session")
def shared() -> Path:
    "Real galaxies and the whole set of golden vectors; a test that needs them is skipped where they are absent."
    folder = shared_root()
    if folder is None:
        pytest.skip("no shared data: set $ASTROCLIP_SHARED to a folder with goldens/ and real/")
    return folder


@pytest.fixture(scope="session")
def goldens() -> Goldens:
    "`goldens / name`: a golden file of the whole set, else a committed one; a test that finds neither is skipped."
    return Goldens()


@pytest.fixture(scope="session")
def real(shared) -> Path:
    return shared / "real"


@pytest.fixture(scope="session")
def home(tmp_path_factory, root) -> Path:
    "One data folder for the smoke runs of all workers (artifacts have locks); needs the stellar grids of the [mock] extra."
    pytest.importorskip(
        "speclite", reason="the simulated survey needs the [mock] extra: pip install -e .[mock]"
    )
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "smoke-home"
    folder.mkdir(exist_ok=True)
    cache = root / "data" / "cache"  # grids made by an earlier run save time, not needed
    if cache.is_dir() and not (folder / "cache").exists():
        try:
            (folder / "cache").symlink_to(cache)
        except FileExistsError:  # another worker's
            pass
    return folder


@pytest.fixture(scope="session")
def sample(root) -> Path:
    "The committed sample of 64 simulated pairs."
    return root / "data" / "sample" / "survey.h5"


def pytest_collection_modifyitems(items):
    "The smoke runs take longest: first, so that the other files run beside them where there are several workers."
    items.sort(key=lambda item: item.get_closest_marker("smoke") is None)
