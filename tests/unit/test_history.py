"""What a run learned is the next one's, and nothing that can be wrong with it stops a run."""

from pathlib import Path

import numpy as np
import pytest

from klotski.core import Routing
from klotski.executors.history import KEPT, OF_HOST, RUNS, History, Setup
from klotski.pipeline import RoutingTable
from klotski.planner import NOMINAL
from klotski.planner.rates import NOMINAL_GPU

MEASURED = "measured by earlier runs of this model"
RATES = NOMINAL.because(MEASURED, **{name: getattr(NOMINAL, name) for name in KEPT})._replace(
    disk=2e9, turn=2e-3, dense_share=0.6
)


CORES = Setup("2 cores", "bfloat16", 2)
GPU = Setup("NVIDIA GeForce RTX 4090", "bfloat16", 2, on_gpu=True)


def history_of(setting: Path | str, model: Path, setup: Setup = CORES) -> History:
    """What is known of a model, for a run with a setup."""
    return History(str(setting), "m", model, lambda: setup)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def learned() -> RoutingTable:
    table = RoutingTable((2, 2))
    for layer, expert in enumerate((0, 1)):
        table.observe(layer, {0: Routing((1 - expert, expert), np.array([[expert]]))})
    return table


def test_a_first_run_knows_nothing(tmp_path: Path, model: Path) -> None:
    history = history_of(tmp_path / "history", model)
    assert history.rates is None
    assert not history.recall(RoutingTable((2, 2)))


def test_the_next_run_knows_what_one_learned(tmp_path: Path, model: Path) -> None:
    history_of(tmp_path / "history", model).keep(learned(), RATES)
    history, table = history_of(tmp_path / "history", model), RoutingTable((2, 2))
    assert history.rates == RATES
    assert history.recall(table)
    assert [shares.tolist() for shares in table.shares] == [[1, 0], [0, 1]]
    assert table.pairs[1].tolist() == [[0, 1], [0, 0]]


def test_auto_is_the_users_cache(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    history_of("auto", model).keep(learned(), RATES)
    assert len(list((tmp_path / "cache" / "klotski").rglob("m-*.npz"))) == 1


def test_none_keeps_nothing(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    history_of("none", model).keep(learned(), RATES)
    assert history_of("none", model).rates is None
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "none").exists()


def test_models_and_their_changes_are_kept_apart(tmp_path: Path, model: Path) -> None:
    history_of(tmp_path / "history", model).keep(learned(), RATES)
    (model / "config.json").write_text('{"changed": true}')
    assert history_of(tmp_path / "history", model).rates is None


def test_the_median_of_the_last_runs_rates_counts(tmp_path: Path, model: Path) -> None:
    for disk in (9e9, *[1e9] * RUNS, 7e9, 8e9):
        history_of(tmp_path / "history", model).keep(learned(), RATES._replace(disk=disk))
    history = history_of(tmp_path / "history", model)
    assert history.rates == RATES._replace(disk=1e9)


def test_what_another_version_kept_is_not_taken_for_ours(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr("klotski.executors.history.KEPT", ("disk", "compute"))
        history_of(tmp_path / "history", model).keep(learned(), RATES)
    history = history_of(tmp_path / "history", model)
    assert history.rates is None
    history.keep(learned(), RATES)
    assert history_of(tmp_path / "history", model).rates == RATES


def test_a_run_that_read_nothing_leaves_the_rates_of_others(tmp_path: Path, model: Path) -> None:
    history_of(tmp_path / "history", model).keep(learned(), RATES)
    history_of(tmp_path / "history", model).keep(learned(), None)
    assert history_of(tmp_path / "history", model).rates == RATES


def test_what_a_gpu_reached_is_kept_apart_from_what_the_cores_did(tmp_path: Path, model: Path) -> None:
    reached = NOMINAL_GPU._replace(link=2e10, compute=9e13)
    history_of(tmp_path / "history", model).keep(learned(), RATES)
    history_of(tmp_path / "history", model, GPU).keep(learned(), reached)
    assert history_of(tmp_path / "history", model).rates == RATES
    history = history_of(tmp_path / "history", model, GPU)
    again, beside = history.rates, history.over(NOMINAL_GPU.because("measured once", memory=7e11, link=1.0))
    assert again is not None and beside is not None
    assert again._replace(reasons={}) == reached
    assert (again.why("link"), again.why("memory")) == (MEASURED, NOMINAL_GPU.reason)
    assert (beside.link, beside.memory) == (2e10, 7e11)
    assert (beside.why("link"), beside.why("memory")) == (MEASURED, "measured once")


@pytest.mark.parametrize(
    "other",
    [
        CORES._replace(device="4 cores"),
        CORES._replace(dtype="float32"),
        CORES._replace(threads=1),
        GPU,
        GPU._replace(device="NVIDIA A100-SXM4-40GB"),
    ],
)
def test_what_another_setup_reached_is_kept_apart(tmp_path: Path, model: Path, other: Setup) -> None:
    table, history = learned(), tmp_path / "history"
    history_of(history, model).keep(table, RATES)
    found = history_of(history, model, other)
    assert found.rates is None
    assert found.recall(RoutingTable((2, 2))), "routing is the model's, whatever computes it"
    found.keep(table, RATES._replace(compute=5.0, link=1e9))
    of_cores, of_other = (history_of(history, model, setup).rates for setup in (CORES, other))
    assert of_cores is not None and of_other is not None
    assert (of_cores.compute, of_other.compute) == (RATES.compute, 5.0)


@pytest.mark.parametrize("older", [OF_HOST.removesuffix("_"), f"{OF_HOST}gpu"])
@pytest.mark.parametrize("setup", [CORES, GPU])
def test_rates_that_say_nothing_of_their_setup_are_not_taken_for_any(
    tmp_path: Path, model: Path, older: str, setup: Setup
) -> None:
    history_of(tmp_path / "history", model).keep(learned(), None)
    (file,) = (tmp_path / "history").iterdir()
    with np.load(file) as arrays:
        known = dict(arrays)
    np.savez(file, **known | {older: np.ones((1, len(KEPT)))})
    history = history_of(tmp_path / "history", model, setup)
    assert history.rates is None
    assert history.over(NOMINAL) is None
    assert history.recall(RoutingTable((2, 2)))


def test_what_computes_is_not_asked_where_no_rates_are_known(tmp_path: Path, model: Path) -> None:
    def find() -> Setup:
        raise AssertionError("it may have to load torch")

    history_of(tmp_path / "history", model).keep(learned(), None)
    assert History(str(tmp_path / "history"), "m", model, find).rates is None


def test_what_was_never_measured_keeps_its_reason(tmp_path: Path, model: Path) -> None:
    history_of(tmp_path / "history", model).keep(learned(), RATES)
    rates = history_of(tmp_path / "history", model).rates
    assert rates is not None
    assert (rates.why("disk"), rates.why("memory")) == (MEASURED, NOMINAL.reason)


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_a_damaged_file_is_said_and_forgotten(
    tmp_path: Path, model: Path, damage: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    history_of(tmp_path / "history", model).keep(learned(), RATES)
    (file,) = (tmp_path / "history").iterdir()
    file.write_bytes(file.read_bytes()[:200] if damage is None else damage)
    history = history_of(tmp_path / "history", model)
    assert history.rates is None
    assert "could not be read" in caplog.text
    history.keep(learned(), RATES)
    assert history_of(tmp_path / "history", model).rates == RATES


def test_where_it_cannot_be_written_the_run_goes_on(
    tmp_path: Path, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    history_of(tmp_path / "file", model).keep(learned(), RATES)
    assert "could not be written" in caplog.text
