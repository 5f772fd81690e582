"""What all tests share."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Models of a few kilobytes gain nothing from a second thread, and lose much to a busy machine."""
    torch.set_num_threads(1)
