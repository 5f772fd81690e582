"""What a run has learned about its model and its machine, kept in its folder and for the next run."""

from klotski.core import LaneName
from klotski.executors.devices import Device, name_of
from klotski.executors.planning import hardware_file
from klotski.executors.rates import RateSamples
from klotski.executors.task import Task
from klotski.pipeline import RoutingTable
from klotski.planner import CROWDED, NOMINAL, Calibration, Rates
from klotski.planner.calibration import MEASURED
from klotski.telemetry import RunLog, Totals

__all__ = ["keep_what_was_learned"]

MOSTLY = 0.5  # share of a run's time; a lane that is busy for less tells little of its rate


def keep_what_was_learned(
    table: RoutingTable,
    task: Task,
    calibration: Calibration,
    log: RunLog,
    totals: Totals,
    samples: RateSamples,
    device: Device,
) -> None:
    """Write routing and rates into the run's folder and the history."""
    log.experts(table.summary())
    rates = None
    way = LaneName.LINK if device.has_host_tier else LaneName.DISK
    found = totals.rates
    if all(found.get(lane) for lane in (way, LaneName.COMPUTE)):  # nothing streamed, nothing was read
        totals.sampled["product"] = samples.product
        crowded = 0.0 if device.has_host_tier else totals.busy_share(LaneName.DISK)
        rates = calibration.rates(task.facts, reached(task, totals, samples), crowded, totals.between)
        gpu = name_of(device) if device.has_host_tier else "none"
        log.hardware(hardware_file(rates, task.terms.budget, gpu))
    task.history.keep(table, rates)


def reached(task: Task, totals: Totals, samples: RateSamples) -> Rates:
    """What was measured beside the spans. Of a machine with a GPU the rest is what the run was planned by."""
    planned, rates = task.terms.rates, totals.rates
    seen = {"compute": rates[LaneName.COMPUTE], "product": samples.product}
    if planned.link is not None:
        return planned.because(MEASURED, link=rates[LaneName.LINK], **seen)
    return NOMINAL.because(MEASURED, disk=reached_by_disk(totals), start=samples.start, wake=samples.wake, **seen)


def reached_by_disk(totals: Totals) -> float:
    """Bytes per second of blocks from disk beside an idle CPU; as sampled, if there was little to read.

    A run reads for longer than a sample, and a disk that others use as well does not keep up its best rate.
    """
    sweeps = totals.sweeps
    seconds = sum(sweep.busy.get(LaneName.DISK, 0.0) for sweep in sweeps)
    if totals.busy_share(LaneName.DISK) < MOSTLY:
        return totals.rates[LaneName.DISK]
    nbytes = sum(sweep.nbytes.get(LaneName.DISK, 0) for sweep in sweeps)
    return nbytes / seconds * (1 + CROWDED * totals.busy_share(LaneName.COMPUTE))
