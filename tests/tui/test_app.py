"""The app, driven key by key: in a terminal of its own kind, and in a real one."""

import asyncio
import json
import os
import pty
import re
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
from textual.widgets import HelpPanel, OptionList, TabbedContent

from monitor.app import PERIOD, Monitor
from monitor.panel import PADDING
from monitor.panels import PANELS
from monitor.panels.view import LABEL
from monitor.player import Player
from monitor.source import Run
from monitor.units import when
from tests.cli.process import PATIENCE
from tests.engine import run_engine
from tests.tui.told import said

SIMULATED = (
    "executor=simulate",
    "model=mixtral",
    "hw=rtx4090",
    "history=none",
    "workload=synthetic",
    *("workload.num_requests=32", "workload.output_tokens=3"),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_engine(tmp_path_factory.mktemp("outputs") / "run", "workload.limit=4", "workload.max_tokens=8")


def drive(app: Monitor, keys: Callable[[Pilot[None]], Awaitable[None]], size: tuple[int, int] = (80, 24)) -> None:
    async def go() -> None:
        async with app.run_test(size=size) as pilot:
            await pilot.pause(0.1)
            app.tick()
            await keys(pilot)

    asyncio.run(go())


def seen(app: Monitor) -> str:
    """What the panel that is seen says."""
    active = app.query_one("#tabs", TabbedContent).active
    return str(app.export_screenshot()) if active == "runs" else text_of(app, active)


def player_in(app: Monitor) -> Player:
    assert app.player is not None
    return app.player


def is_live(app: Monitor) -> bool:
    return player_in(app).is_live


def is_paused(app: Monitor) -> bool:
    return player_in(app).is_paused


def text_of(app: Monitor, name: str) -> str:
    return said(next(title for title in PANELS if title.lower() == name), app.view())


def screen(app: Monitor) -> str:
    """What a terminal would show."""
    strips = app.screen._compositor.render_strips(app.size)
    return "\n".join("".join(segment.text for segment in strip).rstrip() for strip in strips)


def row(app: Monitor, name: str) -> str:
    """A lane's row of the timeline that is on the screen."""
    return next(line for line in screen(app).splitlines() if line.startswith(f" {name:9}"))[10:]


@pytest.mark.parametrize("size", [(80, 24), (160, 50)])
def test_every_panel_has_something_to_say(finished: Path, size: tuple[int, int]) -> None:
    expected = ("✓ ok", "disk", "all batches have left", "waits", "tokens by layer", "core 0", "not part of a sweep")

    async def keys(pilot: Pilot[None]) -> None:
        for number, words in enumerate((*expected, "INFO"), start=1):
            await pilot.press(str(number))
            await pilot.pause(0.1)
            shown = screen(app)
            assert words in shown or (words == "INFO" and "The log is empty" in shown), shown
            assert max(map(len, shown.splitlines())) <= size[0]
            assert "? Help" in shown and "] Panel" in shown, "the footer says how to go on"

    app = Monitor(Run(finished), finished.parent)
    drive(app, keys, size)


def test_the_past_is_reached_by_keys(finished: Path) -> None:
    async def keys(pilot: Pilot[None]) -> None:
        await pilot.press("4")
        await pilot.pause(0.3)
        player, end = player_in(app), player_in(app).end
        window = app.view().window
        await pilot.press("left")
        assert not is_live(app) and is_paused(app)
        assert player.shown == pytest.approx(end - 0.1 * window)
        await pilot.press("left", "right")
        assert player.shown == pytest.approx(end - 0.1 * window)
        await pilot.press("shift+left")
        assert player.shown == pytest.approx(end - 1.1 * window, rel=0.05)
        await pilot.pause(0.3)
        assert f"paused at {when(player.shown)}" in screen(app).splitlines()[0]
        await pilot.press("end")
        assert is_live(app) and not is_paused(app)
        await pilot.press("space")
        assert is_paused(app) and not is_live(app)
        await pilot.press("l")
        assert is_live(app)

    app = Monitor(Run(finished), finished.parent)
    drive(app, keys, (120, 30))


def test_it_is_replayed_at_a_speed(finished: Path) -> None:
    async def keys(pilot: Pilot[None]) -> None:
        player = player_in(app)
        await pilot.press("home")
        assert not is_live(app) and not is_paused(app)
        await pilot.press("comma")
        assert player.speed == 0.5
        await pilot.press("full_stop", "full_stop")
        assert player.speed == 2.0
        player.speed = 0.01
        player.seek(0.1)
        for _ in range(20):
            app.tick()
        gone = player.shown - 0.1
        assert 20 * PERIOD * 0.01 <= gone <= 60 * PERIOD * 0.01, "by the clock of whoever looks on, which ticks, too"
        assert f"replay at 0.01 times the speed, {when(player.shown)}" in app.sub_title
        await pilot.press("space")
        before = player.shown
        app.tick()
        assert is_paused(app) and player.shown == before

    app = Monitor(Run(finished), finished.parent)
    drive(app, keys)


def test_zoom_shows_less_and_more(finished: Path) -> None:
    async def keys(pilot: Pilot[None]) -> None:
        await pilot.press("4")
        usual = app.view().window
        begin, end = player_in(app).state.last_sweep
        assert usual == pytest.approx(2 * (end - begin))
        await pilot.press("plus")
        assert app.view().window == pytest.approx(usual / 1.5)
        await pilot.press("minus", "minus")
        assert app.view().window == pytest.approx(usual * 1.5)
        await pilot.press("r", "enter")
        await pilot.pause(0.2)
        assert app.view().window == pytest.approx(usual), "another run is looked at as usual"

    app = Monitor(Run(finished), finished.parent)
    drive(app, keys)


@pytest.mark.parametrize("size", [(80, 24), (160, 50)])
def test_a_moment_is_pointed_at_by_keys_and_by_mouse(finished: Path, size: tuple[int, int]) -> None:
    async def keys(pilot: Pilot[None]) -> None:
        await pilot.press("4")
        await pilot.pause(0.3)
        assert await pilot.click("#panel-timeline", offset=(PADDING + LABEL + 20, 2))
        await pilot.pause(0.2)
        view = app.view()
        begin, end = view.span
        column = (end - begin) / view.columns
        assert view.pointer == pytest.approx(begin + 20.5 * column)
        marker = next(line for line in screen(app).splitlines() if "▲" in line)
        assert marker.index("▲") == PADDING + LABEL + 20
        assert view.pointer is not None
        named = view.state.lanes["compute"].at(view.pointer)
        assert named is not None and named.name[:40] in screen(app)
        await pilot.press("j", "j", "k")
        assert app.view().pointer == pytest.approx(begin + 19.5 * column)
        await pilot.press("escape")
        assert app.view().pointer is None

    app = Monitor(Run(finished), finished.parent)
    drive(app, keys, size)


def test_waits_are_gone_to_one_by_one(tmp_path: Path) -> None:
    """In each of forty seconds compute waits for a tenth of one; but in ten of them."""
    middles = [second + 0.55 for second in range(40) if not 20 <= second < 30]
    operation = {"lane": "compute", "kind": "expert", "layer": 0}
    lines = [{"event": "bubble", "begin": at - 0.05, "end": at + 0.05} | operation for at in middles]
    lines += [{"event": "sweep", "begin": second, "end": second + 1} for second in range(40)]
    lines.sort(key=lambda line: float(str(line["end"])))
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    seen_at: list[float] = []

    async def press(pilot: Pilot[None], key: str) -> None:
        await pilot.press(key)
        pointer = app.view().pointer
        assert pointer is not None, "it is gone to where it is out of sight"
        seen_at.append(round(pointer, 6))

    async def keys(pilot: Pilot[None]) -> None:
        await pilot.press("4")
        for _ in middles:
            await press(pilot, "p")
        assert seen_at == middles[::-1]
        seen_at.clear()
        for _ in middles[1:]:
            await press(pilot, "n")
        assert seen_at == middles[1:]

    app = Monitor(Run(tmp_path), tmp_path)
    drive(app, keys)


def test_what_does_not_fit_is_scrolled_to(finished: Path) -> None:
    async def keys(pilot: Pilot[None]) -> None:
        await pilot.press("1")
        await pilot.pause(0.3)
        assert "✓ ok" in screen(app) and "what am I looking at" not in screen(app)
        for _ in range(30):
            await pilot.press("down")
        await pilot.pause(0.3)
        assert "what am I looking at" in screen(app) and "✓ ok" not in screen(app)
        await pilot.press("pageup", "pageup", "pageup")
        await pilot.pause(0.3)
        assert "✓ ok" in screen(app)

    app = Monitor(Run(finished), finished.parent)
    drive(app, keys, (80, 14))


def test_the_log_shows_its_newest_lines_though_they_wrap(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    log = folder / "klotski.log"
    log.write_text("".join(f"line {number} {'word ' * 40}\n" for number in range(80)))

    async def keys(pilot: Pilot[None]) -> None:
        await pilot.press("8")
        await pilot.pause(0.3)
        assert "line 79" in screen(app)
        with log.open("a") as file:
            file.write("line 80\n")
        app.look()
        app.draw_panel(is_due=True)
        await pilot.pause(0.3)
        assert "line 80" in screen(app)
        for _ in range(40):
            await pilot.press("up")
        await pilot.pause(0.3)
        assert "line 80" not in screen(app)

    app = Monitor(Run(folder), tmp_path)
    drive(app, keys)


def test_help_comes_and_goes_and_a_panel_keeps_to_its_own_room(finished: Path) -> None:
    async def keys(pilot: Pilot[None]) -> None:
        await pilot.press("4")
        await pilot.pause(0.3)
        whole = app.view().width
        await pilot.press("question_mark")
        await pilot.pause(0.6)
        assert app.screen.query(HelpPanel)
        assert 40 <= app.view().width < whole - 20
        assert len(row(app, "compute")) <= app.view().columns + len(" ▏") + 60
        await pilot.press("question_mark")
        await pilot.pause(0.3)
        assert not app.screen.query(HelpPanel) and app.view().width == whole

    app = Monitor(Run(finished), finished.parent)
    drive(app, keys, (120, 30))


def test_whoever_sees_it_first_is_told_what_there_is_to_see(finished: Path) -> None:
    async def keys(pilot: Pilot[None]) -> None:
        await pilot.pause(0.3)
        assert "w About" in screen(app)
        await pilot.press("w")
        await pilot.pause(0.3)
        shown = screen(app)
        assert "A mixture-of-experts model is mostly experts" in shown and "8 Log" in shown, shown
        await pilot.press("2")
        await pilot.pause(0.3)
        assert "has no queue" in screen(app)

    app = Monitor(Run(finished), finished.parent)
    drive(app, keys)


def test_a_picture_is_kept_and_another_run_picked(finished: Path, tmp_path: Path) -> None:
    async def keys(pilot: Pilot[None]) -> None:
        await pilot.press("s")
        await pilot.pause(0.1)
        assert {file.suffix for file in tmp_path.iterdir()} == {".svg", ".txt"}
        (text,) = tmp_path.glob("*.txt")
        assert all(name in text.read_text() for name in PANELS)
        await pilot.press("r")
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


def test_the_list_keeps_its_place_while_runs_come(finished: Path, tmp_path: Path) -> None:
    for name in ("a [bold]", "b"):
        shutil.copytree(finished, tmp_path / name)

    async def keys(pilot: Pilot[None]) -> None:
        options = app.query_one("#list", OptionList)
        await pilot.press("r", "down")
        await pilot.pause(0.1)
        assert options.highlighted == 1
        chosen = app._picker.run_of("1").folder
        assert "a [bold]" in screen(app)
        shutil.copytree(finished, tmp_path / "c")
        (tmp_path / "c" / "run.json").write_text(json.dumps({"start": time.time() + 9}))
        app.look()
        await pilot.pause(0.1)
        assert options.option_count == 3 and options.highlighted == 2
        await pilot.press("enter")
        assert player_in(app).run.folder == chosen

    app = Monitor(Run(tmp_path / "b"), tmp_path)
    drive(app, keys)


def test_a_folder_that_is_used_again_begins_anew(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)

    async def keys(pilot: Pilot[None]) -> None:
        await pilot.press("plus", "left")
        assert player_in(app).state.num_sweeps > 1
        first = (folder / "events.jsonl").read_bytes()
        (folder / "events.jsonl").write_bytes(first + first)  # longer than before: only run.json tells
        identity = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps(identity | {"start": identity["start"] + 100, "pid": 1}))
        before = player_in(app)
        app.look()
        assert player_in(app) is not before and is_live(app) and app._window is None

    app = Monitor(Run(folder), tmp_path)
    drive(app, keys)


def test_a_predicted_run_is_called_so_above_every_panel(tmp_path: Path) -> None:
    folder = run_engine(tmp_path / "run", *SIMULATED)

    async def keys(pilot: Pilot[None]) -> None:
        for number in range(1, len(PANELS) + 1):
            await pilot.press(str(number))
            await pilot.pause(0.1)
            assert "predicted, ok" in screen(app).splitlines()[0]
        await pilot.press("1", "left")
        await pilot.pause(0.3)
        assert "predicted, paused at" in screen(app).splitlines()[0]
        metrics = json.loads((folder / "metrics.json").read_text())
        assert f"{metrics['output_tokens_per_second']:.1f} over all" in text_of(app, "overview") or not is_live(app)

    app = Monitor(Run(folder), tmp_path)
    drive(app, keys)
    for name in ("metrics.json",):  # while it goes on, the config says so
        (folder / name).unlink()
    assert Run(folder).is_predicted


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], "There is no plan yet"),
        (["plan.json"], "loads what stays for the whole run"),
        (["metrics.json"], "no sweep had"),
    ],
)
def test_before_there_is_anything_to_see_it_says_what_goes_on(
    finished: Path, tmp_path: Path, files: list[str], words: str
) -> None:
    identity = {"schema": 1, "pid": os.getpid(), "host": os.uname().nodename, "start": time.time() + 1}
    (tmp_path / "run.json").write_text(json.dumps(identity | {"start": time.time()}))
    for name in files:
        shutil.copy(finished / name, tmp_path / name)

    async def keys(pilot: Pilot[None]) -> None:
        await pilot.pause(0.3)
        shown = text_of(app, "overview")
        assert words.lower() in shown.lower(), shown
        assert bool(re.search(r"for \d+\.\d", shown)) == ("metrics.json" not in files)
        assert "Nothing is computed" not in shown or "metrics.json" in files

    app = Monitor(Run(tmp_path), tmp_path)
    drive(app, keys)


def test_a_job_that_has_ended_is_followed_by_the_next_with_its_own_status(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "multirun.yaml").touch()
    alive = {"schema": 1, "pid": os.getpid(), "host": os.uname().nodename, "start": time.time()}
    for name in ("0", "1"):
        shutil.copytree(finished, tmp_path / name)
        (tmp_path / name / "run.json").write_text(json.dumps(alive))
        (tmp_path / name / "metrics.json").unlink()

    async def keys(pilot: Pilot[None]) -> None:
        assert "▶ running" in seen(app)
        shutil.copy(finished / "metrics.json", tmp_path / "0" / "metrics.json")
        app.look()
        app.draw_panel()
        assert player_in(app).run.folder.name == "1"
        assert "▶ running" in seen(app) and "job 1" in seen(app), "and not that of the job before"

    app = Monitor(Run(tmp_path / "0"), tmp_path)
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
        app.look()
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
        assert "schema 2" in shown and "✓ ok" in shown
        assert "could not be read" not in shown, "an event that is not known is not damaged"

    drive(app := Monitor(Run(folder), tmp_path), keys)


def test_without_a_run_it_waits_for_one(finished: Path, tmp_path: Path) -> None:
    async def keys(pilot: Pilot[None]) -> None:
        assert app.query_one("#list", OptionList).option_count == 0
        assert "start one" in screen(app) and "make run" in screen(app)
        await pilot.press("w")
        await pilot.pause(0.3)
        assert "A mixture-of-experts model is mostly experts" in screen(app)
        await pilot.press("r")
        shutil.copytree(finished, tmp_path / "run")
        app.look()
        await pilot.pause(0.3)
        assert app.query_one("#list", OptionList).option_count == 1

    app = Monitor(None, tmp_path)
    drive(app, keys)


def test_who_looks_while_the_app_is_closing_finds_nothing_and_goes_on(tmp_path: Path) -> None:
    """On a busy machine a tick comes when the list of runs is half taken apart."""

    async def keys(_: Pilot[None]) -> None:
        for part in ("#lead", "#list"):
            await app.query(part).remove()
            app.tick()
            app.look()

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
        while process.poll() is None and time.monotonic() - begin < PATIENCE:
            if select.select([master], [], [], 0.1)[0]:
                with suppress(OSError):  # it has closed its end
                    drawn += os.read(master, 1 << 16)
            if b"Overview" in drawn and time.monotonic() - pressed > 1:  # again, if a slow machine had no ear for it
                pressed = time.monotonic()
                os.write(master, keys)
        return process.wait(timeout=PATIENCE), drawn
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
            process.wait(timeout=PATIENCE)
        finally:
            process.kill()


def test_a_folder_without_a_run_is_refused_in_a_sentence(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "monitor", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "there is no run.json" in done.stderr and "Traceback" not in done.stderr
