"""A scrape says what the recorder and the totals say, to this machine alone, for as long as the server is open."""

import socket
import struct
import time
from collections.abc import Iterator
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from klotski.core import Compute, LaneName, Operation, PrefetchCount, Span
from klotski.errors import ConfigError
from klotski.telemetry import Recorder, SweepUse, Totals
from klotski.telemetry.prometheus import PrometheusServer

RUN = {"model": "tiny", "hw": "auto", "pipeline": "klotski", "mode": "measured"}


@pytest.fixture
def recorder() -> Recorder:
    recorder = Recorder(None)
    recorder.span(Span(LaneName.DISK, Operation("expert", 0, nbytes=700), 0.5, 0.75))
    recorder.span(Span(LaneName.COMPUTE, Operation(Compute.EXPERT, 0), 1.0, 2.5))
    recorder.bubble(Span(LaneName.COMPUTE, Operation(Compute.EXPERT, 0), 0.5, 1.0))
    return recorder


@pytest.fixture
def totals() -> Totals:
    return Totals(
        num_requests=2,
        prompt_tokens=30,
        output_tokens=10,
        prefetch=[PrefetchCount(6, 4), PrefetchCount(2, 2)],
        sweeps=[SweepUse(4.0, {}, 0.0, {}, 0, True, 2), SweepUse(2.0, {}, 0.0, {}, 0, False, 8)],
        peak_memory={"device": 5000, "host": 7000, "process": 9000},
    )


@pytest.fixture
def port(recorder: Recorder, totals: Totals) -> Iterator[int]:
    with PrometheusServer(0) as server:
        server.serve(recorder, totals, RUN)
        yield server.port


def scrape(port: int, query: str = "") -> dict[tuple[str, str | None], float]:
    """Samples of the run by name, and by lane or tier."""
    with urlopen(f"http://127.0.0.1:{port}/metrics{query}", timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    assert all(family.documentation for family in families)
    samples = [sample for family in families for sample in family.samples if sample.name.startswith("klotski_")]
    assert all(sample.labels["mode"] == RUN["mode"] for sample in samples)
    return {(each.name, each.labels.get("lane", each.labels.get("tier"))): each.value for each in samples}


def test_a_scrape_says_what_a_run_has_added_up_to(port: int) -> None:
    assert scrape(port) == {
        ("klotski_run_info", None): 1,
        ("klotski_lane_busy_seconds_total", "disk"): 0.25,
        ("klotski_lane_busy_seconds_total", "compute"): 1.5,
        ("klotski_lane_bytes_total", "disk"): 700,
        ("klotski_lane_bytes_total", "compute"): 0,
        ("klotski_bubble_seconds_total", None): 0.5,
        ("klotski_sweeps_total", None): 2,
        ("klotski_sweep_seconds_total", None): 6,
        ("klotski_requests_total", None): 2,
        ("klotski_prompt_tokens_total", None): 30,
        ("klotski_output_tokens_total", None): 10,
        ("klotski_prefetch_requested_total", None): 8,
        ("klotski_prefetch_used_total", None): 6,
        ("klotski_peak_memory_bytes", "device"): 5000,
        ("klotski_peak_memory_bytes", "host"): 7000,
    }


def test_the_next_scrape_says_what_has_come_since(port: int, recorder: Recorder, totals: Totals) -> None:
    before = scrape(port)
    recorder.span(Span(LaneName.DISK, Operation("expert", 1, nbytes=50), 3.0, 3.5))
    totals.output_tokens += 1
    changed = {key: value for key, value in scrape(port).items() if value != before[key]}
    assert changed == {
        ("klotski_lane_busy_seconds_total", "disk"): 0.75,
        ("klotski_lane_bytes_total", "disk"): 750,
        ("klotski_output_tokens_total", None): 11,
    }


def test_a_scrape_may_ask_for_some_metrics_alone(port: int) -> None:
    assert scrape(port, "?name[]=klotski_sweeps_total") == {("klotski_sweeps_total", None): 2}


def test_a_run_that_has_not_begun_can_be_scraped() -> None:
    with PrometheusServer(0) as server:
        server.serve(Recorder(None), Totals(), RUN)
        samples = scrape(server.port)
    assert samples.pop(("klotski_run_info", None)) == 1
    assert set(samples.values()) == {0}


def test_the_process_s_own_memory_is_served(port: int) -> None:
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        families = {family.name: family for family in text_string_to_metric_families(answer.read().decode())}
    (sample,) = families["process_resident_memory_bytes"].samples
    assert sample.value > 10**6


def test_nobody_else_is_answered(port: int) -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=10)  # what listens on all addresses listens there, too


def test_who_asks_before_there_is_an_answer_waits_for_it(recorder: Recorder, totals: Totals) -> None:
    with PrometheusServer(0) as server, socket.create_connection(("127.0.0.1", server.port), timeout=10) as early:
        early.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        server.serve(recorder, totals, RUN)
        assert early.recv(4) == b"HTTP"


def test_who_hangs_up_is_no_matter_of_the_run_s(port: int, capfd: pytest.CaptureFixture[str]) -> None:
    for asked in (b"", b"GET /metrics HTTP/1.0\r\n", b"GET /metrics HTTP/1.0\r\n\r\n", b"\xff\x00\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as rude:
            rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, and no goodbye
            rude.sendall(asked)
    time.sleep(0.2)
    assert scrape(port)["klotski_sweeps_total", None] == 2
    assert capfd.readouterr() == ("", "")


def test_who_asks_nothing_holds_up_neither_the_next_one_nor_the_end(recorder: Recorder, totals: Totals) -> None:
    with PrometheusServer(0) as server, socket.create_connection(("127.0.0.1", server.port), timeout=10):
        server.serve(recorder, totals, RUN)
        assert scrape(server.port)["klotski_sweeps_total", None] == 2
        with socket.create_connection(("127.0.0.1", server.port), timeout=10):
            time.sleep(0.2)  # the server has heard of it by now, or closes sooner
            server.close()  # returns, though the client has not hung up


def test_a_port_is_free_again_when_its_server_is_closed(recorder: Recorder, totals: Totals) -> None:
    with PrometheusServer(0) as server:
        server.serve(recorder, totals, RUN)
        scrape(server.port)
    with PrometheusServer(server.port) as another:
        another.serve(recorder, totals, RUN)
        scrape(another.port)


def test_a_port_that_is_taken_is_refused_with_a_way_out(port: int) -> None:
    with pytest.raises(ConfigError, match=f"prometheus={port} is not a port that .*: Address already in use; set "):
        PrometheusServer(port)
