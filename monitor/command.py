"""The command `klotski-monitor`."""

import argparse
import sys
from pathlib import Path

from monitor.app import Monitor
from monitor.source import Run, find_runs

__all__ = ["main"]


def main() -> int:
    """Watch the run that is named, or the newest under `outputs/`; returns the exit status."""
    parser = argparse.ArgumentParser(prog="klotski-monitor", description="Watch a run, or one that has ended.")
    parser.add_argument("run", nargs="?", type=Path, help="the run's folder; without it, the newest under outputs/")
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="where runs are looked for")
    chosen = parser.parse_args()
    if chosen.run is None:
        found = find_runs(chosen.outputs)
        Monitor(found[0] if found else None, chosen.outputs).run()
        return 0
    if not (chosen.run / "run.json").is_file():
        print(f"{chosen.run} is no run's folder: it has no run.json; name one, or leave it out", file=sys.stderr)
        return 1
    Monitor(Run(chosen.run), chosen.run.parent).run()
    return 0
