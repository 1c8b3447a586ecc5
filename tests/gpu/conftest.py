"""The device of the tests of CUDA paths. They are skipped on a machine without a GPU.

python -m pytest -n 0 tests/gpu                                 on a GPU
SENTIMENT_TEST_DEVICE=cpu python -m pytest -n 0 tests/gpu       the same code on a CPU against itself
"""

import os

import pytest
import torch


@pytest.fixture
def device() -> torch.device:
    """Returns the device that is compared with the CPU."""
    name = os.environ.get("SENTIMENT_TEST_DEVICE") or ("cuda" if torch.cuda.is_available() else "")
    if not name:
        pytest.skip("needs a GPU, or SENTIMENT_TEST_DEVICE=cpu")
    torch.backends.cudnn.allow_tf32 = False  # as nn.runtime.choose_machine does
    return torch.device(name)
