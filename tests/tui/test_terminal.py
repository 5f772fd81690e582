"""The monitor in a real terminal (tmux), beside real runs that are killed, sweep, and lose their folders."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.process import PATIENCE
from tests.engine import run_engine

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not here")

REPOSITORY = Path(__file__).parents[2]
ENDLESS = ("workload=synthetic", "workload.num_requests=5000", "workload.input_tokens=32", "workload.output_tokens=64")
PANELS = {"1": "progress", "2": "waiting:", "3": "batch", "4": "the right edge", "5": "tokens by layer"}
PANELS |= {"6": "device", "7": "not part of a sweep", "8": "INFO"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_engine(tmp_path_factory.mktemp("outputs") / "run", "workload.limit=4", "workload.max_tokens=8")


class Terminal:
    """A terminal with the monitor in it."""

    def __init__(
        self, *arguments: str | Path, size: tuple[int, int] = (80, 24), where: Path = REPOSITORY, env: str = ""
    ) -> None:
        self._name = f"klotski-{uuid.uuid4().hex}"
        monitor = f"{sys.executable} -m monitor {' '.join(map(str, arguments))}"
        command = f"unset COLUMNS LINES; PYTHONPATH={REPOSITORY} {env} {monitor}"
        self.tmux("new-session", "-d", "-x", str(size[0]), "-y", str(size[1]), "-c", str(where), "sh")
        self.tmux("send-keys", f"{command}; echo status $?", "Enter")

    def tmux(self, *arguments: str) -> str:
        """What tmux answers."""
        done = subprocess.run(
            ["tmux", "-L", self._name, "-f", "/dev/null", *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout

    def press(self, *keys: str) -> None:
        """As a hand would, one after the other."""
        for key in keys:
            self.tmux("send-keys", key)
            time.sleep(0.1)

    @property
    def screen(self) -> str:
        """What is to be read."""
        return self.tmux("capture-pane", "-p")

    def shows(self, *words: str, keys: str = "", seconds: float = PATIENCE) -> bool:
        """Whether all words come to be read at once; `keys` are pressed until then."""
        return comes_true(lambda: all(word in self.screen for word in words), lambda: self.press(*keys), seconds)


def comes_true(
    what: Callable[[], bool], meanwhile: Callable[[], object] = lambda: None, seconds: float = PATIENCE
) -> bool:
    """Whether something becomes so in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what():
            return True
        meanwhile()
        time.sleep(0.3)
    return False


@contextmanager
def terminal(
    *arguments: str | Path, size: tuple[int, int] = (80, 24), where: Path = REPOSITORY, env: str = ""
) -> Iterator[Terminal]:
    shown = Terminal(*arguments, size=size, where=where, env=env)
    try:
        yield shown
    finally:
        shown.tmux("kill-server")


@contextmanager
def running(folder: Path, *overrides: str) -> Iterator[subprocess.Popen[bytes]]:
    """A run, as a process."""
    with subprocess.Popen(
        [sys.executable, "-m", "klotski", *(overrides or ENDLESS), f"hydra.run.dir={folder}", "history=none"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            assert comes_true(lambda: (folder / "plan.json").is_file())
            yield process
        finally:
            process.kill()


def test_a_run_is_found_watched_by_two_and_killed_under_them(tmp_path: Path) -> None:
    with (
        running(tmp_path / "run") as run,
        terminal("--outputs", tmp_path) as one,
        terminal(tmp_path / "run", size=(160, 50)) as two,
    ):
        assert one.shows("▶ running", "tokens/s"), one.screen
        assert two.shows("▶ running", "A sweep takes all batches"), two.screen
        for key, words in PANELS.items():
            one.press(key)
            assert one.shows(words), one.screen
        one.press("1")
        assert comes_true(lambda: "progress" in one.screen and " 0 sweeps" not in one.screen), one.screen
        run.send_signal(signal.SIGKILL)
        run.wait()
        for each in (one, two):
            assert each.shows("✝ dead", "its process is gone", "sweeps"), each.screen
        one.press("q")
        assert one.shows("status 0")


def test_a_prediction_is_watched_as_it_is_made(tmp_path: Path) -> None:
    many = ("workload=synthetic", "workload.num_requests=2048", "pipeline.n_batches=4", "pipeline.batch_size=16")
    predicted = ("executor=simulate", "model=mixtral", "hw=rtx4090", *many)
    with running(tmp_path / "run", *predicted) as run, terminal(tmp_path / "run", size=(120, 30)) as shown:
        assert shown.shows("predicted, live", "▶ running", "tokens/s"), shown.screen
        assert comes_true(lambda: bool(re.search(r"done in [1-9][0-9]* sweep", shown.screen))), shown.screen
        shown.press("2")
        assert shown.shows("link", "waiting: not told"), shown.screen
        run.send_signal(signal.SIGTERM)
        run.wait()
        assert shown.shows("predicted, interrupted"), shown.screen


def test_every_key_in_a_terminal_of_any_size(finished: Path, tmp_path: Path) -> None:
    with terminal(finished, where=tmp_path) as shown:
        assert shown.shows("✓ ok")
        shown.press("Left", "Left", "Right", "Home", "+", "-", ">", "<", "]", "[", "Space", "Space", "?")
        for width, height in ((40, 12), (200, 60), (80, 24)):
            shown.tmux("resize-window", "-x", str(width), "-y", str(height))
            time.sleep(0.5)
            assert max(map(len, shown.screen.splitlines())) <= width
        shown.press("End", "s", "1")
        assert shown.shows("✓ ok", "Overview")
        assert comes_true(lambda: {file.suffix for file in tmp_path.iterdir()} == {".svg", ".txt"})
        shown.press("C-p")
        assert shown.shows("Theme")
        shown.press("Escape")
        # Typed at once, the next key would belong to the escape: a terminal sends Alt+R so.
        assert comes_true(lambda: "Theme" not in shown.screen)
        shown.press("r")
        assert shown.shows("ok  ", "  run "), shown.screen
        shown.press("q")
        assert shown.shows("status 0")


@pytest.mark.parametrize("env", ["NO_COLOR=1", "TERM=xterm", "COLORFGBG='0;15'"])
def test_colours_are_the_terminals_own_sixteen_or_none(finished: Path, env: str) -> None:
    own = {f"{ground}{colour}" for ground in ("3", "4", "9", "10") for colour in "01234567"}
    seen: set[str] = set()
    with terminal(finished, env=env) as shown:
        assert shown.shows("✓ ok")
        for key in "1234567":
            shown.press(key)
            assert shown.shows(PANELS.get(key, "left" if key == "3" else ""))
            codes = re.findall(r"\x1b\[([0-9;]*)m", shown.tmux("capture-pane", "-p", "-e"))
            assert codes, "at least what is bold or faint is told from the rest"
            seen |= {part for code in codes for part in re.findall(r"(?:^|;)((?:[34]8;[25].*)|[0-9]+)", code)}
    coloured = {code for code in seen if re.fullmatch(r"((9|10|[34])[0-8]).*", code)}
    if env == "NO_COLOR=1":
        assert not coloured
    else:
        assert coloured <= own
        assert {"32", "33"} <= coloured and coloured & {"31", "91"}, "what works, what is well used, and what waits"


def test_a_folder_that_is_deleted_under_it_is_told(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    with terminal(folder) as shown:
        assert shown.shows("✓ ok")
        shutil.rmtree(folder)
        assert shown.shows("✝ dead", "its folder is gone")
        shown.press(*PANELS, "1")
        assert shown.shows("its folder is gone")


def test_garbage_is_told_and_left_out(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    with terminal(folder) as shown:
        assert shown.shows("✓ ok")
        with (folder / "events.jsonl").open("ab") as file:
            file.write(os.urandom(3000).replace(b"\n", b"") + b'\n{"event": "span", "lane": 3}\n')
        assert shown.shows("2 lines of events.jsonl could not be read", "✓ ok")


def test_without_a_run_it_waits_for_one(finished: Path, tmp_path: Path) -> None:
    with terminal("--outputs", tmp_path) as shown:
        assert shown.shows("There is no run under")
        shutil.copytree(finished, tmp_path / "run")
        assert shown.shows("ok  ")
        shown.press("Down", "Enter")
        assert shown.shows("✓ ok", "progress")


def test_a_picture_where_nothing_may_be_written(finished: Path) -> None:
    with terminal(finished, size=(120, 30), where=Path("/proc")) as shown:
        assert shown.shows("✓ ok")
        assert shown.shows("could not be written", keys="s")


def test_where_several_run_one_is_picked(tmp_path: Path) -> None:
    with (
        running(tmp_path / "first"),
        running(tmp_path / "second"),
        terminal("--outputs", tmp_path, size=(160, 50)) as shown,
    ):
        assert shown.shows("running", "  first", "  second"), shown.screen
        shown.press("Down", "Enter")
        assert shown.shows("▶ running", "model=tiny")


def test_a_sweep_shows_its_jobs_and_what_came_of_them(tmp_path: Path) -> None:
    jobs = ["-m", "pipeline=klotski,sequential", "workload.limit=2", "workload.max_tokens=4", "history=none"]
    subprocess.run(
        [sys.executable, "-m", "klotski", *jobs, f"hydra.sweep.dir={tmp_path}"], check=True, capture_output=True
    )
    with terminal(tmp_path, size=(120, 30)) as shown:
        assert shown.shows("2 of 2 jobs have ended")
        shown.press("7")
        assert shown.shows("klotski", "sequential", "tokens/s", "✓ ok"), shown.screen
