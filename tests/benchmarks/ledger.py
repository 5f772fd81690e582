"""Long measurements that go on where they were interrupted: a file of the runs that have been made."""

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["Made", "make_all"]

Made = Mapping[Any, dict[str, Any]]
"""What came of each run that has been made."""


def make_all(file: Path, wanted: Iterable[Any], run: Callable[[Any, Made], dict[str, Any]]) -> list[dict[str, Any]]:
    """What came of all runs, named tuples; those that are not in the file yet are made, and written to it one by one.

    `run` is told of those made before. A line has the job's fields and what `run` returned.
    """
    wanted = list(wanted)
    lines = file.read_text().splitlines() if file.exists() else []
    fields = wanted[0]._fields
    known = {tuple(each[name] for name in fields): each for each in map(json.loads, lines)}
    for number, job in enumerate(wanted, start=1):
        if job not in known:
            known[job] = job._asdict() | run(job, known)
            with file.open("a") as out:
                out.write(json.dumps(known[job]) + "\n")
            print(f"{number} of {len(wanted)}: {json.dumps(known[job])}", file=sys.stderr, flush=True)
    return [known[job] for job in wanted]
