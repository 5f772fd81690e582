"""The app, driven key by key: in a terminal of its own kind, and in a real one."""

import asyncio
import json
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import OptionList, Static, TabbedContent

from monitor.app import Monitor
from monitor.panels import PANELS
from monitor.source import Run
from tests.engine import run_engine


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_engine(tmp_path_factory.mktemp("outputs") / "run", "workload.limit=4", "workload.max_tokens=8")


def drive(app: Monitor, keys: Callable[[Pilot[None]], Awaitable[None]], size: tuple[int, int] = (80, 24)) -> None:
    async def go() -> None:
        async with app.run_test(size=size) as pilot:
            await pilot.pause(0.1)
            await keys(pilot)

    asyncio.run(go())


def seen(app: Monitor) -> str:
    """What the panel that is seen says."""
    active = app.query_one("#tabs", TabbedContent).active
    return str(app.export_screenshot()) if active == "runs" else text_of(app, active)


def is_live(app: Monitor) -> bool:
    assert app._player is not None
    return app._player.is_live


def text_of(app: Monitor, name: str) -> str:
    from io import StringIO

    from rich.console import Console

    assert app.query_one(f"#panel-{name}", Static).is_attached
    out = StringIO()
    draw = next(draw for title, draw in PANELS.items() if title.lower() == name)
    Console(file=out, width=app.size.width, no_color=True).print(draw(app.view()))
    return out.getvalue()


@pytest.mark.parametrize("size", [(80, 24), (160, 50)])
def test_every_panel_has_something_to_say(finished: Path, size: tuple[int, int]) -> None:
    expected = ("✓ ok", "disk", "batch", "waits", "tokens by layer", "core 0", "not part of a sweep", "INFO")

    async def keys(pilot: Pilot[None]) -> None:
        for number, words in enumerate(expected, start=1):
            await pilot.press(str(number))
            await pilot.pause(0.05)
            shown = seen(app)
            assert words in shown or (words == "INFO" and "empty" in shown)
            assert all(len(line) <= size[0] for line in shown.splitlines())

    app = Monitor(Run(finished), finished.parent)
    drive(app, keys, size)


def test_every_key_does_what_the_footer_says(finished: Path, tmp_path: Path) -> None:
    async def keys(pilot: Pilot[None]) -> None:
        player = app._player
        assert player is not None
        await pilot.press("left")
        assert not is_live(app) and player.is_paused
        before = player.shown
        await pilot.press("left", "left", "right")
        assert player.shown != before or player.shown == 0.0
        await pilot.press("home")
        assert player.shown < player.end
        await pilot.press("full_stop", "comma", "plus", "minus")
        await pilot.press("space", "end")
        assert is_live(app)
        await pilot.press("space")
        assert player.is_paused and not is_live(app)
        await pilot.press("l", "s")
        await pilot.pause(0.1)
        assert {file.suffix for file in tmp_path.iterdir()} == {".svg", ".txt"}
        await pilot.press("question_mark", "r")
        await pilot.pause(0.1)
        assert app.query_one("#tabs", TabbedContent).active == "runs"
        assert app.query_one("#list", OptionList).option_count == 1
        await pilot.press("enter")
        await pilot.pause(0.1)
        assert app.query_one("#tabs", TabbedContent).active == "overview"
        await pilot.resize_terminal(40, 10)
        await pilot.resize_terminal(200, 60)
        await pilot.press("q")

    app = Monitor(Run(finished), finished.parent, tmp_path)
    drive(app, keys)


def test_a_run_whose_process_is_gone_is_dead(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "metrics.json").unlink()
    with subprocess.Popen(["true"]) as process:
        pass
    identity = f'{{"schema": 1, "pid": {process.pid}, "host": "{os.uname().nodename}", "start": {time.time() - 5}}}'
    (folder / "run.json").write_text(identity)

    async def keys(pilot: Pilot[None]) -> None:
        assert "dead" in seen(app)
        shutil.rmtree(folder)
        await pilot.pause(0.6)
        app._ticks = 0
        await pilot.press("4", "1")
        await pilot.pause(0.3)
        assert "its folder is gone" in seen(app)

    app = Monitor(Run(folder), tmp_path)
    drive(app, keys)


def test_garbage_is_counted_and_does_no_harm(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    with (folder / "events.jsonl").open("ab") as file:
        file.write(os.urandom(3000).replace(b"\n", b"") + b'\n{"event": "span", "lane": 3}\n')
    (folder / "plan.json").write_text("{")

    async def keys(pilot: Pilot[None]) -> None:
        for number in range(1, 9):
            await pilot.press(str(number))
            await pilot.pause(0.05)
        await pilot.press("1")
        assert "2 lines of events.jsonl could not be read" in seen(app)

    app = Monitor(Run(folder), tmp_path)
    drive(app, keys)


def test_a_run_of_a_newer_version_is_shown_as_far_as_it_is_understood(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "run.json").write_text(json.dumps({"schema": 2, "ship": "Beagle"}))
    with (folder / "events.jsonl").open("a") as file:
        file.write('{"event": "dream", "of": "sheep"}\n')

    async def keys(pilot: Pilot[None]) -> None:
        for number in range(1, 9):
            await pilot.press(str(number))
            await pilot.pause(0.05)
        await pilot.press("1")
        shown = seen(app)
        assert "schema 2" in shown and "1 lines of events.jsonl" in shown and "✓ ok" in shown

    drive(app := Monitor(Run(folder), tmp_path), keys)


def test_without_a_run_it_waits_for_one(finished: Path, tmp_path: Path) -> None:
    async def keys(pilot: Pilot[None]) -> None:
        assert app.query_one("#list", OptionList).option_count == 0
        shutil.copytree(finished, tmp_path / "run")
        app._ticks = 0
        await pilot.pause(0.6)
        assert app.query_one("#list", OptionList).option_count == 1

    app = Monitor(None, tmp_path)
    drive(app, keys)


def test_a_picture_that_cannot_be_written_says_so(finished: Path, tmp_path: Path) -> None:
    async def keys(pilot: Pilot[None]) -> None:
        await pilot.press("s")
        await pilot.pause(0.1)
        assert any("could not be written" in note.message for note in app._notifications)

    app = Monitor(Run(finished), finished.parent, tmp_path / "nowhere")
    drive(app, keys)


def in_terminal(*arguments: str, keys: bytes) -> tuple[int, bytes]:
    """The command in a real terminal, with keys once it has drawn; its status and what it drew."""
    master, slave = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
    process = subprocess.Popen(
        [sys.executable, "-m", "monitor", *arguments], stdin=slave, stdout=slave, stderr=slave, env=environment
    )
    os.close(slave)
    drawn, begin, pressed = b"", time.monotonic(), 0.0
    try:
        while process.poll() is None and time.monotonic() - begin < 30:
            if select.select([master], [], [], 0.1)[0]:
                with suppress(OSError):  # it has closed its end
                    drawn += os.read(master, 1 << 16)
            if b"Overview" in drawn and time.monotonic() - pressed > 1:  # again, if a slow machine had no ear for it
                pressed = time.monotonic()
                os.write(master, keys)
        return process.wait(timeout=10), drawn
    finally:
        process.kill()
        process.wait()
        os.close(master)


def test_it_runs_in_a_terminal_and_leaves_it(finished: Path) -> None:
    status, drawn = in_terminal(str(finished), keys=b"12345678q")
    assert status == 0
    assert b"Overview" in drawn and b"Traceback" not in drawn


def test_it_ends_with_its_terminal(finished: Path) -> None:
    master, slave = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "monitor", str(finished)], stdin=slave, stdout=slave, stderr=slave
    ) as process:
        os.close(slave)
        drawn = b""
        while b"Overview" not in drawn:
            drawn += os.read(master, 1 << 16)
        os.close(master)
        try:
            process.wait(timeout=20)
        finally:
            process.kill()


def test_a_folder_without_a_run_is_refused_in_a_sentence(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "monitor", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "there is no run.json" in done.stderr and "Traceback" not in done.stderr
