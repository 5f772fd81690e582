"""Keeps a run's totals true while it goes on: results, sweeps, memory, progress."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType

from rich.console import Console

from klotski.core import PrefetchCount, Request, Result, SweepReport
from klotski.lanes import Lane
from klotski.planner import ModelFacts, peak_memory, process_memory
from klotski.telemetry import Done, Progress, Recorder, RunLog, StateEvent, SweepUse, Totals
from klotski.workload import Encoder, result_line

__all__ = ["Account"]


class Account:
    """Hears of every result and every sweep of one run. A context manager: it shows progress."""

    def __init__(
        self,
        requests: Sequence[Request],
        facts: ModelFacts,
        encoder: Encoder,
        log: RunLog,
        recorder: Recorder,
        totals: Totals,
        *,
        is_measured: bool = True,
    ) -> None:
        """`is_measured`: the process itself takes the run's memory."""
        self._is_measured = is_measured
        self._facts = facts
        self._encoder = encoder
        self._log = log
        self._recorder = recorder
        self._totals = totals
        self._num_requests = len(requests)
        self._expected = sum(request.max_tokens for request in requests)
        self._progress = Progress(len(requests), Console(stderr=True), is_predicted=not is_measured)
        self._lasting = 0
        self._with_caches = True
        self._taken: Callable[[], int | None] = lambda: None
        self._done = Done({}, {}, 0.0)

    def __enter__(self) -> "Account":
        self._progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.__exit__(kind, error, trace)
        self._recorder.flush()

    def ready(
        self, nbytes: int, host: int = 0, *, with_caches: bool = True, taken: Callable[[], int | None] = lambda: None
    ) -> None:
        """All memory that lasts is taken, `host` of it below a GPU; what was read until now belongs to no sweep.

        `with_caches`: keys and values are on the device, too. `taken`: bytes that its allocator has given away at
        most, where there is one that knows.
        """
        self._lasting = nbytes
        self._taken = taken
        self._with_caches = with_caches
        if host:
            self._totals.peak_memory["host"] = host
        self._recorder.begin()

    def measured(self, samples: Mapping[str, float]) -> None:
        """The machine's rates, as sampled."""
        self._totals.sampled |= samples

    def sweeping(self, prefetch: Sequence[PrefetchCount]) -> None:
        """Sweeps begin; the sweeper keeps `prefetch` of each layer as they go."""
        self._totals.prefetch = prefetch

    def look(self, time: float, lanes: Iterable[Lane], wanted: Mapping[str, int]) -> StateEvent:
        """How things stand."""
        prefetch = self._prefetch()
        return StateEvent(
            time=time,
            waiting={lane.name: lane.waiting for lane in lanes},
            wanted=dict(wanted),
            memory=process_memory(),
            requested=prefetch.requested,
            used=prefetch.used,
            output_tokens=self._totals.output_tokens,
            requests=self._totals.num_requests,
        )

    def result(self, result: Result) -> None:
        """A request has finished: its line is on disk when this returns."""
        line = result_line(result, self._encoder)
        self._log.result(line)
        self.ended(result.request, line["output_tokens"])

    def ended(self, request: Request, output_tokens: int) -> None:
        """A request has its last token."""
        self._totals.num_requests += 1
        self._totals.prompt_tokens += len(request.prompt)
        self._expected -= request.max_tokens - output_tokens

    def sweep(self, report: SweepReport) -> None:
        """A sweep has ended."""
        if not self._totals.sweeps:
            self._totals.first_prefetch = PrefetchCount.total(self._totals.prefetch)
        flops = self._facts.flops(
            report.prefill_tokens + report.decode_tokens,
            report.output_tokens,
            report.pairs,
            report.spared,
            report.padding,
        )
        ended = self._totals.num_requests
        # Lanes go on meanwhile: what the sweep's event tells is what counts.
        done = self._recorder.sweep(report, flops, ended, self._prefetch(), is_last=ended == self._num_requests)
        self._totals.sweeps.append(
            SweepUse(
                seconds=report.end - report.begin,
                busy={lane: seconds - self._done.busy.get(lane, 0.0) for lane, seconds in done.busy.items()},
                bubble=done.bubbles - self._done.bubbles,
                nbytes={lane: count - self._done.nbytes.get(lane, 0) for lane, count in done.nbytes.items()},
                flops=flops,
                is_prefill=report.prefill_tokens > 0,
                output_tokens=report.output_tokens,
            )
        )
        self._done = done
        self._totals.output_tokens += report.output_tokens
        self._note_memory(report.cache_bytes)
        self._recorder.flush()
        self._progress.advance(self._totals.num_requests, self._totals.output_tokens, self._expected)

    def _prefetch(self) -> PrefetchCount:
        return PrefetchCount.total(self._totals.prefetch) if self._totals.prefetch else PrefetchCount()

    def _note_memory(self, cache_bytes: int) -> None:
        peak = self._totals.peak_memory
        taken = self._taken()
        if taken is None:
            taken = max(peak.get("device", 0), self._lasting + self._with_caches * cache_bytes)
        peak["device"] = taken
        if self._is_measured:
            peak["process"] = peak_memory()
