"""What a run has added up to so far, as Prometheus scrapes it: http://127.0.0.1:PORT/metrics.

Loaded by runs with `prometheus=PORT` alone. Nothing is kept here: each scrape reads what the recorder and the totals
keep anyway, on a thread of the server's own, and takes no lock but the recorder's.

What is read before the first sweep, to load what stays, counts until that begins, and then no more: counters begin
anew there, as Prometheus knows it of programs that were restarted. Every sample of `klotski_...` says by its `mode`
whether it was `measured` or `predicted`, so that no graph can take the one for the other; those of `process_...` are
always measured.
"""

import logging
import threading
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from klotski.core import PrefetchCount
from klotski.errors import ConfigError
from klotski.telemetry.metrics import Totals
from klotski.telemetry.recorder import Recorder

__all__ = ["PrometheusServer"]

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"  # a run is for this machine to look at; who wants it elsewhere forwards the port
PERIOD = 0.1  # seconds until a server notices that it is to end
PATIENCE = 1.0  # seconds for who asks and falls silent; the run's end waits for nobody longer


class PrometheusServer:
    """Serves a run's metrics on a port of this machine. A context manager, which gives the port back."""

    def __init__(self, port: int) -> None:
        """Take the port; who asks now is answered once `serve` was called.

        Raises:
            ConfigError: the port cannot be had.
        """
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._answer, name="klotski-prometheus", daemon=True)
        try:
            self._server = Server((HOST, port), Handler)
        except OSError as error:
            raise ConfigError(
                f"prometheus={port} is not a port that can be listened on: {error.strerror}; set another one, "
                "or null for none"
            ) from error

    @property
    def port(self) -> int:
        """Where it is, chosen by the system if it was to be 0."""
        return self._server.server_port

    def serve(self, recorder: Recorder, totals: Totals, run: Mapping[str, str]) -> None:
        """Answer from now on. `run`: what is said of the run itself; its `mode` goes with every sample."""
        registry = CollectorRegistry(auto_describe=True)
        registry.register(RunCollector(recorder, totals, run))
        ProcessCollector(registry=registry)
        self._server.set_app(make_wsgi_app(registry))
        self._thread.start()
        logger.info("metrics are on http://%s:%d/metrics", HOST, self.port)

    def close(self) -> None:
        """Answer who is being answered, and give the port back."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(PATIENCE)
        self._server.server_close()

    def __enter__(self) -> "PrometheusServer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self) -> None:
        while not self._ended.is_set():
            self._server.handle_request()


class Server(WSGIServer):
    """Answers one after the other."""

    timeout = PERIOD

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who hangs up before the answer is no matter of the run's."""


class Handler(WSGIRequestHandler):
    """Says nothing on the console, and hangs up on who asks nothing."""

    timeout = PATIENCE

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the base class's word)
        """Leave it unsaid."""


class RunCollector(Collector):
    """Reads how things stand at each scrape; see the module."""

    def __init__(self, recorder: Recorder, totals: Totals, run: Mapping[str, str]) -> None:
        self._recorder = recorder
        self._totals = totals
        self._run = run

    def collect(self) -> Iterator[Metric]:
        """All metrics, as they are now."""
        recorder, totals = self._recorder, self._totals
        guesses = PrefetchCount.total(totals.prefetch)
        yield InfoMetricFamily(
            "klotski_run", "The options that the run is made of; mode: measured, or predicted.", dict(self._run)
        )
        yield self._by_lane("busy_seconds", "Seconds of the run's clock that a lane has worked.", recorder.busy_seconds)
        yield self._by_lane("bytes", "Bytes that a lane has moved.", recorder.bytes_moved)
        yield self._counter(
            "bubble_seconds",
            "Seconds of the run's clock that the compute lane has waited for blocks.",
            recorder.bubble_seconds,
        )
        yield self._counter("sweeps", "Sweeps that have ended.", len(totals.sweeps))
        yield self._counter(
            "sweep_seconds",
            "Seconds of the run's clock that these sweeps took.",
            sum(sweep.seconds for sweep in totals.sweeps),
        )
        yield self._counter("requests", "Requests that have finished.", totals.num_requests)
        yield self._counter("prompt_tokens", "Tokens of these requests' prompts.", totals.prompt_tokens)
        yield self._counter("output_tokens", "Tokens that were given out.", totals.output_tokens)
        yield self._counter(
            "prefetch_requested", "Experts that were sent for before a router asked for them.", guesses.requested
        )
        yield self._counter("prefetch_used", "Of these experts, those that a router asked for then.", guesses.used)
        memory = GaugeMetricFamily(
            "klotski_peak_memory_bytes", "Bytes that the run has taken of a tier, at most.", labels=("mode", "tier")
        )
        for tier in ("device", "host"):
            if tier in totals.peak_memory:
                memory.add_metric((self._run["mode"], tier), totals.peak_memory[tier])
        yield memory

    def _counter(self, name: str, text: str, value: float) -> Metric:
        counter = CounterMetricFamily(f"klotski_{name}", text, labels=("mode",))
        counter.add_metric((self._run["mode"],), value)
        return counter

    def _by_lane(self, name: str, text: str, values: Mapping[str, float]) -> Metric:
        counter = CounterMetricFamily(f"klotski_lane_{name}", text, labels=("mode", "lane"))
        for lane, value in values.items():
            counter.add_metric((self._run["mode"], lane), value)
        return counter
