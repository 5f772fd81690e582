"""What a machine reaches is measured once, and kept."""

from pathlib import Path

import pytest

from klotski.executors import machine
from klotski.executors.devices import CpuDevice
from klotski.executors.machine import machine_rates
from klotski.model import OpenModel, open_model
from klotski.planner import NOMINAL
from tests.architectures import save_checkpoint


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of any size are worth it, for a moment."""
    monkeypatch.setattr(machine, "ENOUGH", 0)
    monkeypatch.setattr(machine, "SECONDS", 0.005)


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
    assert first.reason.startswith("measured on this machine (")
    monkeypatch.setattr(machine, "multiply", None)
    monkeypatch.setattr(machine, "read_blocks", None)
    assert machine_rates(str(tmp_path), model, CpuDevice()) == first


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
    assert rates.reason.endswith("the disk not yet")
    known = machine_rates(str(tmp_path), open_model(folder, None), CpuDevice())
    assert known is not None
    assert known.disk != NOMINAL.disk


def test_nothing_is_measured_where_nothing_is_kept_or_for_a_small_model(
    model: OpenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert machine_rates("none", model, CpuDevice()) is None
    monkeypatch.setattr(machine, "ENOUGH", 1 << 30)
    assert machine_rates(str(tmp_path), model, CpuDevice()) is None
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_fails_nothing(
    model: OpenModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    assert machine_rates(str(tmp_path / "file" / "folder"), model, CpuDevice()) is not None
    assert "it will be measured again" in caplog.text
