"""JSON that somebody else wrote, asked for what should be there: other types, and what is missing, are nothing."""

from math import isfinite
from pathlib import Path

import msgspec

__all__ = ["Facts", "JsonFile"]

MOST = 1e18  # no number of a run is larger, in whatever unit


class Facts:
    """An object, and what lies in it. `number("bound", "seconds")` is that of `{"bound": {"seconds": 1.5}}`."""

    def __init__(self, content: object = None) -> None:
        self._content = content if isinstance(content, dict) else {}

    def __bool__(self) -> bool:
        return bool(self._content)

    def at(self, *keys: str) -> object:
        """What is there, of whatever type; None for nothing."""
        found: object = self._content
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        return found

    def group(self, *keys: str) -> "Facts":
        """An object in it."""
        return Facts(self.at(*keys))

    def number(self, *keys: str) -> float | None:
        """A number that one can reckon with."""
        return as_number(self.at(*keys))

    def amount(self, *keys: str) -> float:
        """Likewise, or 0."""
        return self.number(*keys) or 0.0

    def text(self, *keys: str) -> str:
        """Text, or nothing."""
        found = self.at(*keys)
        return found if isinstance(found, str) else ""

    def numbers(self, *keys: str) -> dict[str, float]:
        """The numbers of an object, by name."""
        found = self.at(*keys)
        known = {str(name): as_number(value) for name, value in found.items()} if isinstance(found, dict) else {}
        return {name: value for name, value in known.items() if value is not None}

    def words(self, *keys: str) -> list[str]:
        """The texts of a list."""
        found = self.at(*keys)
        return [each for each in found if isinstance(each, str)] if isinstance(found, list) else []


class JsonFile:
    """A file with an object, that others replace. It is read when it has changed."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._version: tuple[int, ...] | None = None
        self._facts = Facts()

    def read(self) -> Facts:
        """What it says; nothing if it is not there, or damaged."""
        try:
            known = self._file.stat()
            version = (known.st_mtime_ns, known.st_size, known.st_ino)
            if version != self._version:
                self._facts, self._version = Facts(msgspec.json.decode(self._file.read_bytes())), version
        except OSError:
            self._facts, self._version = Facts(), None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self._facts, self._version = Facts(), version
        return self._facts


def as_number(value: object) -> float | None:
    """A number between what one can reckon with; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= MOST and isfinite(value) else None
