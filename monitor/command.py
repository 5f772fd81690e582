"""The command `klotski-monitor`."""

import argparse
import sys
from pathlib import Path

from monitor.app import Monitor
from monitor.source import Run, RunList, is_there

__all__ = ["main"]


def main() -> int:
    """Watch the run that is named, or the newest under `outputs/`; returns the exit status."""
    parser = argparse.ArgumentParser(prog="klotski-monitor", description="Watch a run, or one that has ended.")
    parser.add_argument(
        "run", nargs="?", type=Path, help="the folder of a run or of a sweep; without it, the newest under outputs/"
    )
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="where runs are looked for")
    chosen = parser.parse_args()
    if chosen.run is None:
        found = RunList(chosen.outputs).find()
        is_clear = sum(status.is_running for _, status in found) <= 1  # otherwise whoever looks on picks one
        Monitor(found[0][0] if found and is_clear else None, chosen.outputs).run()
        return 0
    if is_there(chosen.run / "run.json"):
        Monitor(Run(chosen.run), chosen.run.parent).run()
        return 0
    if not (jobs := RunList(chosen.run).find()):
        print(
            f"{chosen.run} is no run's folder, and none is below it: there is no run.json; name one, or leave it out",
            file=sys.stderr,
        )
        return 1
    Monitor(jobs[0][0], chosen.run).run()
    return 0
