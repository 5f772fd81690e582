"""What a run leaves behind: spans, the run's folder, metrics, the trace, and progress."""

from klotski.telemetry.events import StateEvent, SweepEvent
from klotski.telemetry.metrics import SweepUse, Totals, summarize
from klotski.telemetry.progress import Progress
from klotski.telemetry.recorder import Allowance, Done, Recorder
from klotski.telemetry.runlog import RunLog
from klotski.telemetry.trace import write_trace

__all__ = [
    "Allowance",
    "Done",
    "Progress",
    "Recorder",
    "RunLog",
    "StateEvent",
    "SweepEvent",
    "SweepUse",
    "Totals",
    "summarize",
    "write_trace",
]
