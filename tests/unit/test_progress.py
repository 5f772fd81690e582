"""What a run says of itself where nobody watches a bar."""

from io import StringIO

import pytest
from rich.console import Console

from klotski.telemetry import Progress, progress


def test_a_line_tells_how_long_it_will_take_at_most_once_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    said = StringIO()
    with Progress(8, Console(file=said, width=100)) as shown:
        shown.advance(0, 0, 1000)
        shown.advance(3, 500, 1000)
    first, second = said.getvalue().splitlines()
    assert first == "0 of 8 requests, 0.0 tokens/s"
    assert second.startswith("3 of 8 requests, ") and second.endswith(" s left")
