"""A run's folder is its own: whatever is started there later, nothing that was finished is lost."""

import json
from pathlib import Path

import pytest

from tests.cli.process import only_sentence, run_klotski, start_klotski, streaming, wait_for_lines
from tests.engine import read_lines

SHORT = ("workload.limit=2", "workload.max_tokens=3")


def contents(run: Path) -> dict[str, bytes]:
    """What a run left behind; its log may be added to."""
    files = (file for file in run.rglob("*") if file.is_file() and file.suffix != ".log")
    return {str(file.relative_to(run)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    run = run_klotski(*SHORT, "hydra.run.dir=0", cwd=folder)
    assert run.status == 0, run.err
    return folder / "0"


def test_nothing_that_is_started_in_the_folder_of_a_finished_run_touches_it(finished: Path) -> None:
    """Another run, a dry run, a prediction, a refused config, a refused plan."""
    before = contents(finished)
    assert {"results.jsonl", ".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml"} <= before.keys()
    for again in ([], ["dry_run=true"], ["executor=simulate"], ["pipeline.n_batches=none"], ["hw.device_memory=1MB"]):
        sentence = only_sentence(run_klotski(*SHORT, "hydra.run.dir=0", *again, cwd=finished.parent))
        assert sentence.startswith(f"{finished} holds the results of an earlier run, which are kept; choose"), again
        assert contents(finished) == before, again


def test_the_jobs_of_a_sweep_into_a_used_folder_are_refused_and_the_others_run(finished: Path) -> None:
    before = contents(finished)
    done = run_klotski("-m", *SHORT, "pipeline=klotski,overlap", "hydra.sweep.dir=.", cwd=finished.parent)
    assert done.status == 1
    assert "0 holds the results of an earlier run" in done.err
    assert contents(finished) == before
    assert len(read_lines(finished.parent / "1" / "results.jsonl")) == 2


def test_a_predicted_run_is_kept_as_well(tmp_path: Path) -> None:
    predicted = (*SHORT, "executor=simulate", "hydra.run.dir=run")
    assert run_klotski(*predicted, cwd=tmp_path).status == 0
    before = contents(tmp_path / "run")
    assert "holds the figures of an earlier run" in only_sentence(run_klotski(*predicted, cwd=tmp_path))
    assert contents(tmp_path / "run") == before


def test_a_second_run_in_the_folder_of_one_under_way_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    settings = streaming(tmp_path, "3MB", 2)
    results = tmp_path / "run" / "results.jsonl"
    with start_klotski(*settings, cwd=tmp_path) as process:
        wait_for_lines(results, 3, process)
        assert "belongs to a run that is under way" in only_sentence(run_klotski(*settings, cwd=tmp_path))
        wait_for_lines(results, results.read_bytes().count(b"\n") + 3, process)
        process.terminate()
        process.communicate(timeout=60)
    assert [line["id"] for line in read_lines(results)][:3] != []
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["status"] == "interrupted"
