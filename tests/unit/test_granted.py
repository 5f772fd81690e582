"""What of a machine is granted to a process: by control groups, by its own limits, and by what other runs take."""

import errno
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from klotski.executors import base
from klotski.executors.base import settle_threads
from klotski.executors.planning import grant
from klotski.executors.threads import computing_threads
from klotski.planner import hardware, process_memory
from klotski.planner.cgroups import cpu_quota, group_memory
from klotski.planner.hardware import free_memory, granted_cores, process_budget
from klotski.planner.reservations import one_at_a_time, release, reserve
from klotski.schema import HwConfig, RunConfig
from tests.cli.process import environment, run_klotski, start_klotski, streaming, wait_for_lines

GIGABYTE = 10**9


def write(folder: Path, **files: object) -> None:
    """A control group, with its files: `cpu__max` is `cpu.max`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name.replace("__", ".")).write_text(f"{value}\n")


@pytest.mark.parametrize(
    ("inner", "left"),
    [
        ({"memory__max": "max"}, 350),
        ({"memory__max": 120}, 20),
        ({"memory__max": "max", "memory__high": "max"}, 350),
        ({"memory__max": "max", "memory__high": 130}, 30),
        ({"memory__max": 120, "memory__high": 130}, 20),
        ({"memory__max": 1000, "memory__high": 90}, 0),
    ],
)
def test_the_smallest_limit_of_all_groups_counts_and_page_cache_is_free(
    inner: dict[str, object], left: int, tmp_path: Path
) -> None:
    groups, membership = tmp_path / "groups", tmp_path / "membership"
    membership.write_text("0::/outer/inner\n")
    write(groups / "outer", memory__max=1000, memory__current=700, memory__stat="anon 5\nactive_file 50\nfile 60")
    write(groups / "outer" / "inner", memory__current=100, **inner)
    assert group_memory(groups, membership) == left


def test_memory_is_limited_by_groups_of_version_1_as_well(tmp_path: Path) -> None:
    groups, membership = tmp_path / "groups", tmp_path / "membership"
    membership.write_text("5:cpu:/there\n4:memory:/here\n0::/\n")
    write(groups / "memory", memory__limit_in_bytes=2**63 - 4096, memory__usage_in_bytes=10**9)
    write(groups / "memory" / "here", memory__limit_in_bytes=10**9, memory__usage_in_bytes=4 * 10**8)
    assert group_memory(groups, membership) == 6 * 10**8


@pytest.mark.parametrize(
    ("membership", "files", "quota"),
    [
        ("0::/outer/inner\n", {"outer": {"cpu__max": "200000 100000"}, "outer/inner": {"cpu__max": "max 100000"}}, 2),
        ("0::/outer/inner\n", {"outer": {"cpu__max": "max 1"}, "outer/inner": {"cpu__max": "75000 50000"}}, 1.5),
        ("0::/not/seen\n", {".": {"cpu__max": "300000 100000"}}, 3),
        ("0::/\n", {".": {"cpu__max": "max 100000"}}, None),
        (
            "3:cpu,cpuacct:/here\n0::/\n",
            {"cpu/here": {"cpu__cfs_quota_us": 50000, "cpu__cfs_period_us": 100000}},
            0.5,
        ),
        ("1:cpu:/here\n", {"cpu/here": {"cpu__cfs_quota_us": -1, "cpu__cfs_period_us": 100000}}, None),
    ],
)
def test_the_smallest_cpu_quota_of_all_groups_counts(
    membership: str, files: dict[str, dict[str, object]], quota: float | None, tmp_path: Path
) -> None:
    (tmp_path / "membership").write_text(membership)
    for folder, content in files.items():
        write(tmp_path / "groups" / folder, **content)
    assert cpu_quota(tmp_path / "groups", tmp_path / "membership") == quota


def test_where_nothing_is_limited_nothing_is(tmp_path: Path) -> None:
    membership = tmp_path / "membership"
    assert group_memory(tmp_path, membership) is cpu_quota(tmp_path, membership) is None
    membership.write_text("0::/\n")
    assert group_memory(tmp_path, membership) is cpu_quota(tmp_path, membership) is None


@pytest.mark.parametrize(("quota", "threads"), [(None, 64), (2.0, 2), (2.9, 2), (0.5, 1), (100.0, 64)])
def test_threads_are_as_many_as_the_quota_pays_for_and_bound_only_if_they_have_all_cores(
    quota: float | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    variables: dict[str, str] = {}
    monkeypatch.setattr(hardware, "GIVEN", set(range(64)))
    monkeypatch.setattr(hardware, "cpu_quota", lambda: quota)
    monkeypatch.setattr(base, "find_gpus", lambda: [])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(torch, "set_num_threads", started.append)
    monkeypatch.delenv("OMP_NUM_THREADS")
    settle_threads(HwConfig(name="auto"), variables)
    with computing_threads(HwConfig(name="auto")):
        assert (granted_cores(), started) == (threads, [threads] * (threads < 64))
    assert started == [threads, 64] * (threads < 64), "the number of threads is restored for the next job"
    assert ("OMP_PROC_BIND" in variables) == (threads == 64)


@pytest.mark.parametrize(("setting", "chosen", "threads"), [("8", None, [8]), ("8", "5", [8]), ("auto", "5", [])])
def test_a_user_may_choose_more_threads_than_the_quota_pays_for(
    setting: str, chosen: str | None, threads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    monkeypatch.setattr("klotski.executors.threads.granted_cores", lambda: 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(torch, "set_num_threads", started.append)
    monkeypatch.delenv("OMP_NUM_THREADS")
    if chosen:
        monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    with computing_threads(HwConfig(name="auto", threads=setting)):
        assert started == threads


@pytest.mark.parametrize(
    ("group", "nbytes", "reason"),
    [
        (None, 8 * GIGABYTE, "80 % of the 10.0 GB available"),
        (20 * GIGABYTE, 8 * GIGABYTE, "80 % of the 10.0 GB available"),
        (GIGABYTE, 8 * 10**8, "80 % of the 1.0 GB left by the memory limit of its control group"),
    ],
)
def test_what_limits_memory_is_named_and_only_the_process_as_a_whole_has_its_own(
    group: int | None, nbytes: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below a GPU the budget is of pinned memory, which comes on top of what the process has."""
    have_available(monkeypatch, 10 * GIGABYTE, group)
    monkeypatch.setattr(hardware, "process_memory", lambda: 12345)
    assert free_memory() == (nbytes, reason)
    assert process_budget() == (nbytes + 12345, reason)
    config = RunConfig.__new__(RunConfig)
    config.hw = HwConfig(name="auto")
    below = grant(config, (24 * GIGABYTE, "free on the card"))
    assert (below.host, below.host_reason) == (nbytes, reason)


def have_available(patch: pytest.MonkeyPatch, nbytes: int, group: int | None = None) -> None:
    """Let the machine have so much memory available, and the process's control group."""
    patch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=nbytes))
    patch.setattr(hardware, "group_memory", lambda: group)


LIMITED = """
import mmap, resource
import psutil
from klotski.planner import free_memory
resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 500_000_000,) * 2)
nbytes, reason = free_memory()
granted = mmap.mmap(-1, nbytes)
print(nbytes, reason)
mmap.mmap(-1, 200_000_000)
"""


def test_a_process_whose_address_space_is_limited_is_granted_what_it_may_map() -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED], env=environment(), capture_output=True, text=True)
    nbytes, _, reason = done.stdout.strip().partition(" ")
    assert reason == "80 % of the 0.5 GB left by `ulimit -v`, the limit of its address space"
    assert 0.3 * GIGABYTE < int(nbytes) <= 0.4 * GIGABYTE
    assert "MemoryError" in done.stderr or "Cannot allocate memory" in done.stderr, "and not of much more"


PLANNING = """
import sys
from types import SimpleNamespace
from klotski.planner import hardware, process_memory, process_budget
from klotski.planner.reservations import one_at_a_time, reserve
hardware.psutil.virtual_memory = lambda: SimpleNamespace(available=10**10)
hardware.group_memory = lambda: None
print("ready", flush=True)
input()
with one_at_a_time():
    nbytes, reason = process_budget()
    reserve(nbytes)
print(nbytes - process_memory(), reason, flush=True)
input()
"""


def test_runs_that_start_together_plan_with_memory_that_is_there_once() -> None:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PLANNING],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    try:
        assert [answer(each) for each in started] == ["ready"] * 3
        for each in started:
            say(each)
        planned = sorted((answer(each).split(" ", 1) for each in started), key=lambda words: -int(words[0]))
        assert sum(int(nbytes) for nbytes, _ in planned) < 10**10
        assert int(planned[0][0]) > 0.75 * 10**10 and int(planned[1][0]) > 0.15 * 10**10
        reasons = [reason for _, reason in planned]
        assert reasons[0] == "80 % of the 10.0 GB available"
        assert reasons[1] == "80 % of the 2.0 GB available beside 8.0 GB that other runs have reserved"
    finally:
        for each in started:
            each.kill()
            each.communicate()


def test_what_a_run_has_taken_or_left_is_not_reserved_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    have_available(monkeypatch, 10 * GIGABYTE)
    with subprocess.Popen(
        [sys.executable, "-c", PLANNING], env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        for expected in ("ready", "8"):
            assert answer(other).startswith((expected, "79"))
            assert ("other runs" in free_memory()[1]) == (expected != "ready")
            if expected == "ready":
                say(other)
        monkeypatch.setattr(hardware, "group_memory", lambda: GIGABYTE)
        assert free_memory()[0] == 0, "it is in the same control group"
        other.kill()
    assert free_memory()[0] == 0.8 * GIGABYTE


def test_a_process_does_not_leave_memory_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep's jobs are runs of one process."""
    have_available(monkeypatch, 10 * GIGABYTE)
    with one_at_a_time():
        reserve(process_memory() + 5 * GIGABYTE)
    assert free_memory()[0] == 8 * GIGABYTE
    release()


def test_a_cache_that_cannot_be_written_fails_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with one_at_a_time():
        reserve(5 * GIGABYTE)
    release()
    assert "memory that other runs are about to take is not left to them" in caplog.text


def test_a_run_reserves_what_it_has_planned_as_set_or_not(tmp_path: Path) -> None:
    """It has taken next to nothing of what it says the interpreter takes."""
    run = tmp_path / "run"
    settings = [*streaming(tmp_path, "6GB", 4), "hw.runtime_memory=5GB"]
    with start_klotski(*settings, cwd=tmp_path) as process:
        wait_for_lines(run / "results.jsonl", 1, process)
        model_and_work = [setting for setting in settings if setting.startswith(("model", "workload"))]
        said = run_klotski(*model_and_work, "dry_run=true", "hydra.run.dir=other", cwd=tmp_path)
        assert process.poll() is None
    assert "GB that other runs have reserved" in " ".join(said.out.split()) + said.err, said


def answer(process: "subprocess.Popen[str]") -> str:
    """The next line of what a process says."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def say(process: "subprocess.Popen[str]") -> None:
    """Give a process the line that it waits for."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_on_a_file_system_without_locks_a_run_plans_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with one_at_a_time():
        pass
    assert "No locks available; memory that other runs are about to take is not left to them" in caplog.text
