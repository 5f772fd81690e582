"""However a run ends before its time, the first error is the one that is reported, and Ctrl-C is never dropped."""

import json
import os
import signal
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from klotski.core import Operation
from klotski.lanes import InlineLane, Lane
from klotski.lanes.cuda import CudaClock, CudaLane
from klotski.shutdown import CleanUp, interrupted_by_signals
from klotski.telemetry import Recorder, RunLog
from tests.card import Card
from tests.engine import run_engine


def fail(error: BaseException) -> None:
    raise error


def test_what_goes_wrong_while_cleaning_up_does_not_replace_the_first_error(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(KeyError, match="first"), CleanUp() as stack:
        stack.callback(fail, OSError("the disk is full"))
        stack.callback(fail, ValueError("second"))
        raise KeyError("first")
    assert "while the run was cleaned up: the disk is full" in caplog.text


def test_without_an_error_before_it_one_of_the_clean_up_is_raised() -> None:
    with pytest.raises(OSError, match="the disk is full"), CleanUp() as stack:
        stack.callback(fail, OSError("the disk is full"))


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_interrupts_once_and_leaves_the_clean_up_alone(sent: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)]
    cleaned = []
    with pytest.raises(KeyboardInterrupt), interrupted_by_signals():
        try:
            os.kill(os.getpid(), sent)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGHUP)
            cleaned.append(sent)
    assert cleaned == [sent]
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)] == before


def test_a_hangup_that_was_ignored_from_the_start_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupted_by_signals():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


class Finalized:
    """Something whose finalizer happens to run when a signal comes."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def test_an_interrupt_that_a_finalizer_dropped_is_raised_again() -> None:
    with pytest.raises(KeyboardInterrupt), interrupted_by_signals():
        Finalized()
        time.sleep(60)
        pytest.fail("the interrupt was dropped")


@pytest.mark.parametrize("kind", ["inline", "stream"])
def test_ctrl_c_in_an_operation_is_raised_where_it_was_submitted(kind: str) -> None:
    with Card() if kind == "stream" else nullcontext():
        lane = make_lane(kind)
        with pytest.raises(KeyboardInterrupt):
            lane.submit(Operation("dense", 0), lambda: fail(KeyboardInterrupt()))
        lane.close()


def make_lane(kind: str) -> Lane:
    if kind == "inline":
        return InlineLane("compute", Recorder(None))
    return CudaLane("link", Recorder(None), time.monotonic, CudaClock(time.monotonic, torch.device("cuda", 0)))


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("is_first", [True, False], ids=["first", "second"])
def test_a_signal_while_metrics_are_written_does_not_lose_them(
    sent: signal.Signals,
    *,
    is_first: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write = RunLog.metrics

    def write_late(log: RunLog, metrics: dict[str, Any]) -> None:
        os.kill(os.getpid(), sent)
        write(log, metrics)

    monkeypatch.setattr(RunLog, "metrics", write_late)
    if not is_first:
        monkeypatch.setattr(RunLog, "plan", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run_engine(tmp_path, "executor=simulate", "workload.limit=1", "workload.max_tokens=2", "history=none")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["status"] == ("ok" if is_first else "interrupted")
    assert "what was finished" not in caplog.text, "nothing was"
