import os

import pytest
import torch

# Tests run side by side: one thread each is faster and makes floating-point sums repeatable.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
