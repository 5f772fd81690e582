"""What is said of this machine: GPUs by a driver that is made up, and nothing that is the run's."""

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from monitor import machine
from monitor.app import Monitor
from monitor.machine import Gpu, Gpus
from monitor.player import Player
from monitor.source import Run, Status
from tests.cli.process import PATIENCE
from tests.tui.told import said, view_of


class Driver:
    """Of two GPUs; the calls in `refuses` fail, for the first of them or altogether."""

    NVML_PCIE_UTIL_RX_BYTES, NVML_PCIE_UTIL_TX_BYTES = 1, 0

    class NVMLError(Exception):
        pass

    def __init__(self, *refuses: str) -> None:
        self.refuses = refuses
        self.begun = 0
        self.threads: set[int] = set()

    def _tell(self, what: str, value: Any, number: int = 0) -> Any:
        self.threads.add(threading.get_ident())
        if what in self.refuses and not number:
            raise self.NVMLError(what)
        return value

    def nvmlInit(self) -> None:  # noqa: N802
        self._tell("init", None)
        self.begun += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.begun -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, number: int) -> Any:  # noqa: N802
        return self._tell("handle", SimpleNamespace(number=number), number)

    def nvmlDeviceGetName(self, handle: Any) -> str:  # noqa: N802
        return "H100"

    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any:  # noqa: N802
        return self._tell("memory", SimpleNamespace(used=10**9, total=80 * 10**9), handle.number)

    def nvmlDeviceGetUtilizationRates(self, handle: Any) -> Any:  # noqa: N802
        return self._tell("busy", SimpleNamespace(gpu=25 + handle.number), handle.number)

    def nvmlDeviceGetPcieThroughput(self, handle: Any, way: int) -> int:  # noqa: N802
        return 1000 * (1 + way)


def with_driver(monkeypatch: pytest.MonkeyPatch, *refuses: str) -> tuple[Driver, Gpus]:
    driver = Driver(*refuses)
    monkeypatch.setattr(machine, "pynvml", driver)
    return driver, Gpus()


def test_all_gpus_are_seen_and_the_library_is_begun_once(monkeypatch: pytest.MonkeyPatch) -> None:
    driver, gpus = with_driver(monkeypatch)
    for _ in range(3):
        one, two = gpus.look()
        assert one == Gpu("GPU 0 H100", 0.25, 10**9, 80 * 10**9, 2 * 1024_000, 1024_000)
        assert two.busy == 0.26
    assert driver.begun == 1
    gpus.close()
    assert driver.begun == 0


def test_what_fails_for_one_does_not_hide_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    _, gpus = with_driver(monkeypatch, "memory", "busy")
    one, two = gpus.look()
    assert (one.busy, one.memory, one.inward) == (None, None, 2 * 1024_000)
    assert (two.busy, two.memory) == (0.26, 80 * 10**9)
    _, gpus = with_driver(monkeypatch, "handle")
    lost, kept = gpus.look()
    assert lost == Gpu("GPU 0", None, None, None, None, None) and kept.name == "GPU 1 H100"


def test_a_machine_without_a_driver_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    driver, gpus = with_driver(monkeypatch, "init")
    assert gpus.look() == [] and gpus.look() == []
    gpus.close()
    assert driver.begun == 0


def test_the_panel_shows_each_and_says_what_is_not_told(tmp_path: Path) -> None:
    gpus = [
        Gpu("GPU 0 H100", 0.25, 10**9, 80 * 10**9, None, 5.0),
        Gpu("GPU 1", None, None, None, None, None),
        Gpu("GPU 2 A100", None, 10**9, 40 * 10**9, 1.0, 2.0),
    ]
    shown = said("Resources", view_of(Player(Run(tmp_path)), gpus=gpus))
    assert " 25%" in shown and "memory 1GB of 80GB; PCIe in not told, out 5B/s" in shown
    assert "GPU 1: its driver does not answer" in shown and "use is not told" in shown
    assert "no GPU" not in shown and "core 0" in shown
    assert "There is no GPU" in said("Resources", view_of(Player(Run(tmp_path))))


def test_this_machine_is_kept_apart_from_the_runs(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"host": "elsewhere", "pid": 1}')
    shown = said("Resources", view_of(Player(Run(tmp_path)), status=Status("running")))
    assert "the run, on elsewhere, another machine" in shown and "not what is shown above" in shown
    assert shown.index("another machine") < shown.index("this machine now") < shown.index("core 0")
    predicted = said("Resources", view_of(Player(Run(tmp_path)), is_predicted=True))
    assert "which is predicted" in predicted and "not what is shown above" in predicted


def test_a_slow_driver_does_not_hold_up_the_screen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    driver, _ = with_driver(monkeypatch)
    actual, answers = driver.nvmlDeviceGetCount, threading.Event()

    def count() -> int:
        assert threading.get_ident() != screen, "or it waits for itself"
        assert answers.wait(PATIENCE)
        return actual()

    monkeypatch.setattr(driver, "nvmlDeviceGetCount", count)

    screen = threading.get_ident()

    async def look() -> None:
        app = Monitor(Run(tmp_path), tmp_path)
        async with app.run_test() as pilot:
            app.look()
            app.look()
            assert len(app.workers) == 1, "it is not asked again before it has answered"
            answers.set()
            await app.workers.wait_for_complete()
            await pilot.pause()
            assert [gpu.name for gpu in app._gpus_seen] == ["GPU 0 H100", "GPU 1 H100"]
            assert threading.get_ident() not in driver.threads

    asyncio.run(look())
    assert driver.begun == 0
