"""What a GPU has to show. Without one these tests are skipped, visibly, and done on a card of threads."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch

from tests.card import Card
from tests.tiers.schedules import believe

HAS_GPU = torch.cuda.is_available()
WITH_ONE = [pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="there is no CUDA device")]
WITHOUT = pytest.mark.skipif(HAS_GPU, reason="there is a real one")


@pytest.fixture(params=[pytest.param("gpu", marks=WITH_ONE), pytest.param("threads", marks=WITHOUT)], autouse=True)
def new_card(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], AbstractContextManager[object]]:
    """Makes that in which there is a card: the real one, or one of threads."""
    believe(monkeypatch)
    return nullcontext if request.param == "gpu" else Card


@pytest.fixture
def card(new_card: Callable[[], AbstractContextManager[object]]) -> AbstractContextManager[object]:
    """In which there is a card."""
    return new_card()
