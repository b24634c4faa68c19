import os
from pathlib import Path

import pytest
import torch
from workflows import finished_project

# Tests run side by side: one thread each is faster and makes floating-point sums repeatable.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A finished and recorded tiny project; shared by all tests, so to be read only. `duplicate` copies it."""
    base = tmp_path_factory.getbasetemp()
    return finished_project(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base)
