"""Files that are odd, though they are JSON: nothing is half applied, and every panel has something to say."""

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from klotski.telemetry import StateEvent, SweepEvent
from klotski.telemetry.events import BubbleEvent, BubblesEvent, SpanEvent, SpansEvent
from monitor.events import DamagedError, read_line
from monitor.panels import PANELS, draw
from monitor.player import Player
from monitor.source import Run, RunList, Status
from tests.tui.told import event, said, sweep, view_of
from tests.unit.fakes import examples

ODD = [
    b'{"event":"state","time":1,"waiting":[1]}',
    b'{"event":"span","lane":"disk","kind":"expert","layer":0,"begin":1e400,"end":2}',
    b'{"event":"span","lane":"disk","kind":"expert","layer":0,"begin":%d,"end":2}' % 10**400,
    b'{"event":"span","lane":"disk","kind":"expert","layer":0,"begin":2,"end":1}',
    b'{"event":"span","lane":"disk","kind":"expert","layer":0,"begin":-1,"end":1}',
    b'{"event":"span","lane":"compute","kind":"expert","layer":0,"begin":0,"end":1,"expert":1000000000,"tokens":1}',
    b'{"event":"span","lane":"compute","kind":"expert","layer":0,"begin":0,"end":1,"bytes":%d}' % 10**30,
    b'{"event":"sweep","index":0,"begin":null,"end":"1"}',
    b'{"event":"sweep","index":0,"begin":0,"end":1,"batches":"3"}',
    b'{"event":"sweep","index":0,"begin":0,"end":1,"busy":{"disk":null}}',
    b'{"event":"spans","lane":"disk","kind":"expert","layer":0,"begin":0,"end":1}',
    b'{"event":7}',
    b"null",
    b"[" * 100_000,
]
VALUES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers(), max_size=3)
)
VALUES |= st.sampled_from(
    [10**9, 10**30, 10**400, -1, 1e300, "compute", "expert", {"disk": [1, 2]}, {"disk": 3}, [[1, 2]]]
)
WHOLE = [
    SpanEvent("compute", "attention", 0, 0.5, 1.0, batch=1, tokens=5),
    SpanEvent("disk", "expert", 1, 0.5, 1.0, expert=3, bytes=7),
    BubbleEvent("compute", "expert", 1, 0.5, 1.0, expert=3),
    SpansEvent("compute", "expert", 1, 0.5, 1.0, 0.25, 3),
    BubblesEvent("compute", "expert", 1, 0.5, 1.0, 0.25, 3),
    SweepEvent(0, 0.0, 1.0, 2, 3, 4, 5, 6, busy={"disk": 1.0}, bytes={"disk": 5}, tokens=((1, 2), (), (3,))),
    StateEvent(1.0, {"disk": (1, 2)}, {"guesses": 3}, 10**6, 5, 4, 3, 2, batches=((1, "attention", 0),)),
]


@st.composite
def mutated(draw_from: st.DrawFn) -> bytes:
    """A line that an engine might write, with a few of its values changed, or gone."""
    fields: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(draw_from(st.sampled_from(WHOLE))))
    for name in draw_from(st.lists(st.sampled_from(sorted(set(fields) - {"event"})), max_size=3)):
        if draw_from(st.booleans()):
            fields[name] = draw_from(VALUES)
        else:
            fields.pop(name, None)
    return json.dumps(fields).encode()


@pytest.mark.parametrize("line", ODD, ids=lambda line: line[:60].decode())
def test_a_line_that_tells_nothing_changes_nothing(line: bytes) -> None:
    with pytest.raises(DamagedError):
        read_line(line)


def test_an_event_that_is_not_known_is_not_damaged(tmp_path: Path) -> None:
    assert read_line(b'{"event":"dream","of":"sheep"}') is None
    (tmp_path / "events.jsonl").write_text('{"event":"dream"}\n{"event":"span"}\n')
    player = Player(Run(tmp_path))
    player.advance(0.0)
    assert "1 line of events.jsonl could not be read" in said("Overview", view_of(player))


@given(st.lists(mutated(), max_size=12))
@examples(150)
def test_whatever_is_told_can_be_drawn(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    folder = tmp_path_factory.mktemp("odd")
    (folder / "events.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    player = Player(Run(folder))
    player.advance(0.0)
    for status in (Status("running"), Status("ok")):
        for window in (None, 0.001, 86400.0):
            view = view_of(player, status=status, window=window)
            for name, panel in PANELS.items():
                panel(view)
                assert "could not be drawn" not in said(name, view)
    player.seek(player.end / 2)
    assert "could not" not in said("Timeline", view_of(player))


FILES = ["run", "plan", "metrics"]


@given(st.data())
@examples(60)
def test_whatever_files_say_can_be_drawn(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("odd")
    whole: dict[str, dict[str, Any]] = {
        "run": {"schema": 1, "pid": 5, "host": os.uname().nodename, "start": 1.5e9, "mode": "measured"},
        "plan": {
            **{"n_batches": 2, "batch_size": 3, "residents": ["layer 0 expert 1"], "streamed_bytes": 5, "budget": 9},
            **{"budget_reason": "as set", "memory": {"fixed": 5}, "host_memory": {"weights": 3}, "host_budget": 10},
            **{"rates": {"disk": 5.0, "link": 4.0, "compute": 3.0}, "output_tokens": 100.0, "as_set": ["n_batches"]},
            **{"conditions": {"7": {"compute": 1.0, "transfer": 2.0}}, "predicted_output_tokens_per_second": 5.0},
        },
        "metrics": {
            **{"status": "ok", "error": None, "mode": "measured", "output_tokens_per_second": 3.0},
            **{"bound": {"resource": "disk", "efficiency": 0.5}, "rates": {"disk": 5.0}, "bubble_fraction": 0.5},
        },
    }
    for name in data.draw(st.sets(st.sampled_from(FILES))):
        for key in data.draw(st.lists(st.sampled_from(sorted(whole[name])), max_size=3)):
            whole[name][key] = data.draw(VALUES)
        (folder / f"{name}.json").write_text(json.dumps(whole[name]))
    player = Player(Run(folder))
    player.state.apply(sweep(0.0, 1.0, busy={"disk": 0.9, "compute": 0.1}, bytes={"disk": 5}, flops=3, bubble=0.9))
    for name in PANELS:
        assert "could not be drawn" not in said(name, view_of(player))
    assert len(RunList(folder).find()) == (folder / "run.json").exists()


def test_a_panel_that_cannot_be_drawn_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise ArithmeticError("of an odd kind")

    monkeypatch.setitem(PANELS, "Lanes", fail)
    view = view_of(Player(Run(tmp_path)))
    assert str(draw("Lanes", view)) == "This panel could not be drawn: ArithmeticError: of an odd kind"


def test_experts_of_which_there_are_only_sums_are_no_reason_to_fail(tmp_path: Path) -> None:
    player = Player(Run(tmp_path))
    sums = {"lane": "compute", "kind": "expert", "layer": 0, "begin": 0, "end": 1, "seconds": 1, "count": 3}
    player.state.apply(event("spans", **sums))
    assert "of which it is known" in said("Experts", view_of(player))


def test_the_hottest_expert_of_each_layer_stands_out(tmp_path: Path) -> None:
    player = Player(Run(tmp_path))
    player.state.apply(sweep(0.0, 1.0, tokens=[[1, 1000, 600], [4, 3, 0]]))
    first, second = (
        line for line in said("Experts", view_of(player)).splitlines() if line.startswith(("   0", "   1"))
    )
    assert first[5:] == "····████▒▒▒▒" and second[5:] == "████▓▓▓▓    "


def test_one_bad_folder_does_not_hide_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in (("good", '{"start": 5}'), ("bad", '{"start": "x", "pid": []}'), ("worse", "[")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(content)
    (tmp_path / "good" / "metrics.json").write_text('{"status": "ok", "bound": {"efficiency": null}}')
    runs = RunList(tmp_path)
    assert {run.folder.name for run, _ in runs.find()} == {"good", "bad", "worse"}
    (tmp_path / "worse" / "run.json").unlink()
    monkeypatch.setattr(os, "scandir", refuse(tmp_path / "bad", os.scandir))
    assert {run.folder.name for run, _ in runs.find()} == {"good"}


def refuse(folder: Path, scandir: Any) -> Any:
    """As the system does it, but for one folder."""

    def scan(path: Any = ".") -> Any:
        if Path(path) == folder:
            raise PermissionError(13, "denied", str(path))
        return scandir(path)

    return scan


def test_files_are_read_when_they_have_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run.json").write_text('{"start": 5}')
    (tmp_path / "metrics.json").write_text('{"status": "ok"}')
    runs, read, actual = RunList(tmp_path), [], Path.read_bytes

    def read_bytes(file: Path) -> bytes:
        read.append(file.name)
        return actual(file)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    for _ in range(5):
        ((each, _),) = runs.find()
    assert sorted(read) == ["metrics.json", "run.json"]
    (tmp_path / "metrics.json").write_text('{"status": "failed", "error": "no space"}')
    assert each.status() == Status("failed", "no space")


def test_a_run_of_another_machine_that_falls_silent_is_not_said_to_run(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"host": "elsewhere", "pid": 1}')
    (tmp_path / "events.jsonl").touch()
    assert Run(tmp_path).status().is_running
    for name in ("run.json", "events.jsonl"):
        os.utime(tmp_path / name, (1, 1))
    status = Run(tmp_path).status()
    assert status.word == "silent" and "elsewhere" in status.error
