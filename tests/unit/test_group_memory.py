"""What a process may take of a machine whose memory is divided into control groups."""

from pathlib import Path

import pytest

from klotski.planner import hardware
from klotski.planner.hardware import free_memory, group_memory


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name.replace("__", ".")).write_text(f"{value}\n")


def test_the_narrowest_group_counts_and_its_page_cache_is_free(tmp_path: Path) -> None:
    groups, membership = tmp_path / "groups", tmp_path / "membership"
    membership.write_text("0::/outer/inner\n")
    write(groups / "outer", memory__max=1000, memory__current=700, memory__stat="anon 5\nactive_file 50\nfile 60")
    write(groups / "outer" / "inner", memory__max="max", memory__current=100)
    assert group_memory(groups, membership) == 350
    write(groups / "outer" / "inner", memory__max=120, memory__current=100)
    assert group_memory(groups, membership) == 20


def test_groups_of_the_first_kind_count_as_well(tmp_path: Path) -> None:
    groups, membership = tmp_path / "groups", tmp_path / "membership"
    membership.write_text("5:cpu:/there\n4:memory:/here\n0::/\n")
    write(groups / "memory", memory__limit_in_bytes=2**63 - 4096, memory__usage_in_bytes=10**9)
    write(groups / "memory" / "here", memory__limit_in_bytes=10**9, memory__usage_in_bytes=4 * 10**8)
    assert group_memory(groups, membership) == 6 * 10**8


def test_where_nothing_is_limited_nothing_is(tmp_path: Path) -> None:
    membership = tmp_path / "membership"
    assert group_memory(tmp_path, membership) is None
    membership.write_text("0::/\n")
    assert group_memory(tmp_path, membership) is None


def test_a_container_plans_with_its_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "group_memory", lambda: 10**9)
    nbytes, reason = free_memory()
    assert nbytes == int(0.8 * 10**9) + hardware.process_memory()
    assert reason == "80% of the 1.0GB that are free of what its control group may take"
