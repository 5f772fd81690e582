"""What a machine reaches is measured once, and kept."""

from datetime import date
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from klotski.executors import machine
from klotski.executors.devices import CpuDevice
from klotski.executors.machine import machine_rates
from klotski.model import OpenModel, open_model
from klotski.planner import NOMINAL
from klotski.planner.rates import NOMINAL_GPU
from tests.architectures import save_checkpoint
from tests.tiers.delayed import DelayedDevice


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of any size are worth it, for a moment."""
    monkeypatch.setattr(machine, "ENOUGH", 0)
    monkeypatch.setattr(machine, "SECONDS", 0.005)
    monkeypatch.setattr(machine, "COPIED", 1 << 20)
    monkeypatch.setattr(machine, "SEQUENCES", 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint("mixtral", tmp_path_factory.mktemp("model"))


@pytest.fixture
def model(folder: Path) -> OpenModel:
    return open_model(folder, None)


def test_it_is_measured_once(model: OpenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = machine_rates(str(tmp_path), model, CpuDevice())
    assert first is not None
    assert min(first.disk, first.compute, first.product) > 1e6
    assert all(first.why(name).startswith("measured on this machine (") for name in ("disk", "compute", "product"))
    assert first.why("memory") == NOMINAL.reason
    monkeypatch.setattr(machine, "multiply", None)
    monkeypatch.setattr(machine, "read_blocks", None)
    assert machine_rates(str(tmp_path), model, CpuDevice()) == first


def test_other_threads_and_another_torch_are_measured_anew(
    model: OpenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine_rates(str(tmp_path), model, CpuDevice())
    (file,) = tmp_path.iterdir()
    monkeypatch.setattr("torch.get_num_threads", lambda: 77)
    rates = machine_rates(str(tmp_path), model, CpuDevice())
    monkeypatch.setattr("torch.__version__", "9.9")
    machine_rates(str(tmp_path), model, CpuDevice())
    assert rates is not None
    assert "77 threads" in rates.why("compute")
    assert len(machine.read(file)) == 3


def test_each_value_has_its_own_day(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for day in (3, 7):
        monkeypatch.setattr(machine, "date", SimpleNamespace(today=partial(date, 2026, 11, day)))
        rates = machine_rates(str(tmp_path), open_model(folder, None, is_dummy=day == 3), CpuDevice())
    assert rates is not None
    assert rates.why("compute").endswith("2026-11-03)")
    assert rates.why("disk").endswith("2026-11-07)")


def test_of_a_gpu_its_memory_its_way_and_its_launches_are_measured_too(model: OpenModel, tmp_path: Path) -> None:
    rates = machine_rates(str(tmp_path), model, DelayedDevice(1, 0.0))
    assert rates is not None and rates.link is not None and rates.back is not None
    assert min(rates.link, rates.back, rates.memory, rates.below, rates.cores, rates.cores_product) > 1e6
    assert 0 < rates.step < rates.turn < 1
    for name in (
        "link",
        "back",
        "memory",
        "below",
        "cores",
        "cores_product",
        "turn",
        "step",
        "compute",
        "product",
        "disk",
    ):
        assert "measured on this machine (" in rates.why(name), name
    assert rates.why("between") == NOMINAL_GPU.reason


def test_what_is_damaged_is_measured_again(model: OpenModel, tmp_path: Path) -> None:
    machine_rates(str(tmp_path), model, CpuDevice())
    (file,) = tmp_path.iterdir()
    file.write_text("{")
    assert machine_rates(str(tmp_path), model, CpuDevice()) is not None
    assert machine.read(file)


def test_without_weights_the_disk_is_not_measured_yet(folder: Path, tmp_path: Path) -> None:
    rates = machine_rates(str(tmp_path), open_model(folder, None, is_dummy=True), CpuDevice())
    assert rates is not None
    assert rates.disk == NOMINAL.disk
    assert rates.why("disk") == NOMINAL.reason
    known = machine_rates(str(tmp_path), open_model(folder, None), CpuDevice())
    assert known is not None
    assert known.disk != NOMINAL.disk
    again = machine_rates(str(tmp_path), open_model(folder, None, is_dummy=True), CpuDevice())
    assert again == known, "measured with another model's blocks"


def test_where_nothing_is_kept_it_is_measured_each_time(
    model: OpenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    caplog.set_level("INFO")
    for _ in range(2):
        rates = machine_rates("none", model, CpuDevice())
        assert rates is not None
        assert all(rates.why(name).startswith("measured on this machine (") for name in ("disk", "compute", "product"))
    assert [record.getMessage() for record in caplog.records] == ["measuring compute and disk and few"] * 2
    assert not list(tmp_path.iterdir())


def test_a_small_model_is_not_worth_a_measurement(
    model: OpenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "ENOUGH", 1 << 30)
    for setting in ("none", str(tmp_path)):
        assert machine_rates(setting, model, CpuDevice()) is None
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_fails_nothing(
    model: OpenModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    assert machine_rates(str(tmp_path / "file" / "folder"), model, CpuDevice()) is not None
    assert "it will be measured again" in caplog.text
