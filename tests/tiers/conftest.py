"""The model that schedules are tried on, and its tokens."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.architectures import save_checkpoint
from tests.reference import plain_generate
from tests.tiers.schedules import REQUESTS


@pytest.fixture(scope="module")
def model() -> Iterator[Path]:
    with TemporaryDirectory() as name:
        yield save_checkpoint("mixtral", Path(name))


@pytest.fixture(scope="module")
def expected(model: Path) -> dict[str, list[int]]:
    return plain_generate(model, REQUESTS)
