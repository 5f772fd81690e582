"""docs/events.md says what a run writes, and no more."""

import re
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from klotski.core import Compute, LaneName
from klotski.telemetry.events import Event
from klotski.telemetry.runlog import SCHEMA_VERSION

DOCUMENT = (Path(__file__).parents[2] / "docs" / "events.md").read_text()
EVENTS: list[type[msgspec.Struct]] = list(get_args(Event))


def tag_of(event: type[msgspec.Struct]) -> str:
    return str(event.__struct_config__.tag)


def documented_events() -> dict[str, str]:
    """The section of each event, by what it is called in the section's heading."""
    parts = re.split(r"^##+ (.*)$", DOCUMENT, flags=re.MULTILINE)
    headed = zip(parts[1::2], parts[2::2], strict=True)
    return {tag: text for heading, text in headed for tag in re.findall(r"`(\w+)`", heading)}


def documented_fields(section: str) -> list[tuple[str, str]]:
    """Name and default of each field in a section's table."""
    return re.findall(r"^\| `(\w+)` \| \w+ \|\s*(\S*) \|", section, flags=re.MULTILINE)


def default_of(field: msgspec.structs.FieldInfo) -> str:
    """As it would be written; nothing for a field that is always there."""
    if field.default_factory is not msgspec.NODEFAULT:
        return msgspec.json.encode(field.default_factory()).decode()
    return "" if field.default is msgspec.NODEFAULT else msgspec.json.encode(field.default).decode()


def test_the_document_describes_this_version() -> None:
    assert re.findall(r"[Tt]his is version (\d+)", DOCUMENT) == [str(SCHEMA_VERSION)]


def test_every_event_is_described_and_none_besides() -> None:
    assert sorted(documented_events()) == sorted(map(tag_of, EVENTS))


@pytest.mark.parametrize("event", EVENTS, ids=tag_of)
def test_every_field_of_an_event_is_described_with_its_default(event: type[msgspec.Struct]) -> None:
    written = [(field.encode_name, default_of(field)) for field in msgspec.structs.fields(event)]
    assert documented_fields(documented_events()[tag_of(event)]) == written


@pytest.mark.parametrize("word", [*LaneName, *Compute])
def test_every_lane_and_operation_is_described(word: str) -> None:
    assert f"`{word}`" in DOCUMENT.partition("## Lanes and operations")[2].partition("## events.jsonl")[0]
