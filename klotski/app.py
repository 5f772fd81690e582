"""Config in, run, results out."""

import atexit
import gc
import logging
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from klotski import schema
from klotski.errors import KlotskiError
from klotski.refusals import check_paths, explain
from klotski.shutdown import CleanUp, interrupted_by_signals, uninterrupted

if TYPE_CHECKING:
    from klotski.telemetry import Recorder, RunLog, Totals
    from klotski.telemetry.prometheus import PrometheusServer

__all__ = ["main"]

logger = logging.getLogger(__name__)

INTERRUPTED = 130  # the shell's status for a process that Ctrl-C ended


def main() -> int:
    """The command `klotski`; returns the exit status."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra hands its errors on, to be told in one sentence
    atexit.register(gc.freeze)  # else Python looks for garbage once more, through all of torch: up to a second
    logging.raiseExceptions = False  # a full disk ends in one sentence, not in one traceback for each line of the log
    schema.register(config_folder())
    failures: list[KlotskiError] = []
    crashed = False

    @hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")
    def job(composed: DictConfig) -> None:
        nonlocal crashed
        try:
            run(composed, Path(HydraConfig.get().runtime.output_dir))
        except KlotskiError as error:  # told here, so that the other jobs of a sweep go on
            logger.error("%s", error)
            failures.append(error)
        except Exception:
            crashed = True
            raise

    try:
        check_paths(sys.argv[1:])
        job()
    except KlotskiError as error:
        print(error, file=sys.stderr)
        return 1
    except BrokenPipeError:  # `klotski --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (HydraException, OmegaConfBaseException, OSError, ValueError) as error:
        if crashed:  # not Hydra's refusal but a fault of ours, which needs its traceback
            raise
        print(explain(error, sys.argv[1:]), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return 1 if failures else 0


def config_folder() -> Path:
    """The configs inside an installed package, or beside the package in a checkout."""
    package = Path(__file__).parent
    return next(folder for folder in (package / "conf", package.parent / "conf") if folder.is_dir())


def run(composed: DictConfig, folder: Path) -> None:
    """One run; whatever ends it, `metrics.json` says how.

    Raises:
        KlotskiError: what a user can mend.
        KeyboardInterrupt: the user ended it.
    """
    # Heavy imports come after Hydra has answered --help, --cfg and misspelt overrides.
    from klotski.executors import create
    from klotski.telemetry import Recorder, RunLog, Totals

    totals = Totals()
    with interrupted_by_signals(), RunLog(folder) as log, CleanUp() as stack:
        schema.save(composed, folder)
        recorder = Recorder(log.events if composed.get("events", True) else None)
        status, mode, reason = "failed", "measured", None
        stack.callback(lambda: conclude(status, mode, reason, log, recorder, totals))
        try:
            config = schema.load(composed)
            server = take_port(config.prometheus, stack)
            executor = create(config)
            mode = "predicted" if config.dry_run else executor.mode
            log.be(mode)
            if server is not None:
                options = {"model": config.model.name, "hw": config.hw.name, "pipeline": config.pipeline.name}
                server.serve(recorder, totals, options | {"mode": mode})
            executor.run(config, log, recorder, totals)
            status = "ok"
        except KeyboardInterrupt:
            status, reason = "interrupted", "interrupted by the user"
            has_results = totals.num_requests and mode == "measured"
            where = f"; what was finished is in {folder / 'results.jsonl'}" if has_results else ""
            logger.error("interrupted%s", where)
            raise
        except BaseException as error:
            reason = str(error) or type(error).__name__
            raise


def take_port(port: int | None, stack: ExitStack) -> "PrometheusServer | None":
    """Make sure, before anything is loaded, that metrics can be served; until `stack` is closed."""
    if port is None:
        return None
    from klotski.telemetry.prometheus import PrometheusServer  # here, because few runs need what it loads

    return stack.enter_context(PrometheusServer(port))


def conclude(status: str, mode: str, reason: str | None, log: "RunLog", recorder: "Recorder", totals: "Totals") -> None:
    """Write `metrics.json` and `trace.json`, and say in a few lines what came of it."""
    from klotski.telemetry import summarize, write_trace
    from klotski.telemetry.closing import print_summary

    with uninterrupted():
        metrics = summarize(status, mode, totals, recorder, reason)
        log.metrics(metrics)
    if status != "failed" and totals.plan and recorder.is_writing:
        try:
            is_whole = write_trace(log.folder / "events.jsonl", log.folder / "trace.json", mode)
        except OSError as error:
            logger.warning("trace.json could not be written: %s", error.strerror)
            is_whole = True
        if not is_whole:
            logger.info("trace.json has as many events as a viewer can show; events.jsonl has all of them")
    if status == "ok" and totals.sweeps:
        try:
            print_summary(metrics, log.num_errors, log.folder)
        except BrokenPipeError:
            raise
        except OSError as error:
            logger.warning("the summary could not be printed: %s", error.strerror)
