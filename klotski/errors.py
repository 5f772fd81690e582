"""What can go wrong by a user's hand. Each ends a run with one sentence and no traceback.

KlotskiError
├── ConfigError       a key, option or value that does not exist or does not fit
├── CheckpointError   a file of the model is missing, truncated or changed
├── ModelError        the model is not one that this engine can run
├── BudgetError       the memory that was granted cannot hold the smallest plan
├── WorkloadError     no request could be read
└── OutputError       results cannot be written
"""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = [
    "BudgetError",
    "CheckpointError",
    "ConfigError",
    "KlotskiError",
    "ModelError",
    "OutputError",
    "WorkloadError",
    "first_line",
    "panics_are_errors",
]


class KlotskiError(Exception):
    """Base of all errors whose message is meant for the user."""


class ConfigError(KlotskiError):
    """A setting does not exist or does not fit; the message names it and lists what exists."""


class CheckpointError(KlotskiError):
    """A checkpoint's file is missing, truncated or inconsistent; the message names the file."""


class ModelError(KlotskiError):
    """The model cannot be run by this engine; the message says what it lacks."""


class BudgetError(KlotskiError):
    """The memory budget is too small; the message says which would do."""


class WorkloadError(KlotskiError):
    """There is no request to run; the message names the file or setting."""


class OutputError(KlotskiError):
    """The run's folder cannot be written; the message names the file."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something, or else the error's kind: for use in a sentence."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__).rstrip(". ")


@contextmanager
def panics_are_errors() -> Iterator[None]:
    """Turn a panic of a library written in Rust, as tokenizers is, into an error that `except Exception` catches.

    Raises:
        RuntimeError: the library panicked; the message is its own.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # pyo3 gives each extension module a class of its own
            raise
        raise RuntimeError(first_line(error)) from error
