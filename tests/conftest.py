"""What all tests share."""

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from tests.engine import sample_little

# The same examples in every run of the tests, so that none fails where the one before passed. `make test-examples`
# looks for new ones: random, and `EXAMPLES` times as many.
settings.register_profile("repeatable", derandomize=True)
settings.register_profile("exploring", derandomize=False, print_blob=True)
settings.load_profile("exploring" if "EXAMPLES" in os.environ else "repeatable")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Models of a few kilobytes gain nothing from a second thread, and lose much to a busy machine."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start; and it keeps this one's threads unbound


@pytest.fixture(autouse=True)
def fresh_memory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No run begins with what another test's has learned, or the user's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session", autouse=True)
def hasty_measurements() -> Iterator[None]:
    """How fast the machine is matters to nobody here, and would be most of the time of a run of a second."""
    with pytest.MonkeyPatch.context() as patch:
        sample_little(patch)
        yield
