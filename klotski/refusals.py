"""One sentence for whatever Hydra and OmegaConf refuse: it names the setting and what exists.

A value with characters that have a meaning in Hydra's grammar (`=`, `,`, quotes, brackets, `${`, any letter beyond
ASCII) has to be quoted for Hydra inside the quotes for the shell; where it is not, the sentence shows the quoted form.
"""

import difflib
import re
import shlex
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import (
    ConfigKeyError,
    GrammarParseError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from klotski.errors import ConfigError

__all__ = ["check_paths", "did_you_mean", "explain"]

FOLDERS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")  # which a run makes
PATHS = ("model.path", "model.shape", "workload.path", "executor.routing", "history", *FOLDERS)
QUOTES = ("'", '"')
OVERRIDE = re.compile(r"(?P<prefix>\+{0,2}(?P<key>[\w/@.]+)=)(?P<value>.*)", re.DOTALL)
REFERENCE = re.compile(r"(\\*)\$\{")  # OmegaConf's, and the backslashes before it


def explain(error: Exception, overrides: Sequence[str] = ()) -> ConfigError:
    """The sentence for an error of composition, or of making the run's folder."""
    if not isinstance(error, HydraException | OmegaConfBaseException):  # some of theirs are OSErrors, too
        system = next((each for each in (error, error.__cause__) if isinstance(each, OSError)), None)
        return no_folder(system) if system is not None else nameless_option(error, overrides)
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(error, MissingConfigException):
        return missing_option(error)
    if isinstance(error, OverrideParseException):
        quoted = advise(", and this value as", str(error.override))
        return ConfigError(f"'{error.override}' is not an override; write GROUP=OPTION or GROUP.KEY=VALUE{quoted}")
    if isinstance(cause, MissingMandatoryValue):
        return ConfigError(f"{cause.full_key} has no value and needs one; set {cause.full_key}=...")
    if isinstance(cause, ConfigKeyError | AttributeError) and isinstance(cause, OmegaConfBaseException):
        word = str(cause.full_key).rpartition(".")[2]
        return ConfigError(f"{cause.full_key} is not a setting; {did_you_mean(word, keys_of(cause))}")
    if isinstance(cause, InterpolationResolutionError | GrammarParseError):
        return no_reference(cause, overrides)
    if isinstance(cause, OmegaConfBaseException):
        return ConfigError(f"{cause.full_key}: {first_line(cause)}")
    if match := re.match(r"Multiple values for (\S+)\.", str(error)):
        return ConfigError(f"+{match[1]} adds a second option; write {match[1]}=OPTION, without the +")
    if match := re.match(r"Ambiguous value for argument '(.*)'|Sweep parameters '(.*)' requires", str(error)):
        text = match[1] or match[2]
        quoted = advise(", or for one value write", text)
        return ConfigError(f"{text} is more than one value; add -m for one run with each{quoted}")
    if match := re.match(r"Sweeping over Hydra's configuration is not supported : '(.*)'", str(error)):
        quoted = advise("; write", match[1])
        return ConfigError(f"{match[1]} is more than one value, which no setting of Hydra's own can have{quoted}")
    return ConfigError(first_line(error))


def check_paths(arguments: Iterable[str]) -> None:
    """Refuse an override with a path that Hydra would take for something else, before it does.

    Raises:
        ConfigError: it would; the message shows what to write.
    """
    parser = OverridesParser.create()
    for text in arguments:
        match = OVERRIDE.fullmatch(text)
        if match is None or match["key"] not in PATHS:
            continue
        with suppress(HydraException):  # which Hydra raises again
            override = parser.parse_override(text)
            is_wrong = is_misread(match["value"], override)
            if match["key"] in FOLDERS and ("\\${" in match["value"] or (is_wrong and "${" in match["value"])):
                raise no_reference_in_folder()
            if is_wrong:
                raise ConfigError(
                    f"Hydra does not take {text} for the path that it looks like{advise('; write', text)}"
                )


def is_misread(path: str, override: Override) -> bool:
    """Whether Hydra reads something else than this path. What is quoted for it is meant so.

    So is what is escaped, or a list of values, unless there is such a path. A folder that is still to be made may have
    any name, such as `1_000`, which Hydra reads as a number.
    """
    if override.is_sweep_override():
        return exists(path)
    value = override.value()
    if not isinstance(value, str):
        return str(value) != path
    return (value != path or "${" in path) and path[:1] not in QUOTES and exists(path)


def exists(path: str) -> bool:
    """Whether there is such a file or folder."""
    try:
        return Path(path).expanduser().exists()
    except (OSError, RuntimeError):  # too long for a name; a user who has no home
        return False


def advise(lead: str, text: str) -> str:
    """What to write on a POSIX shell for an override's value to be read as it stands; nothing if it is no setting's."""
    match = OVERRIDE.fullmatch(text)
    if match is None or (match["key"] not in PATHS and "." not in match["key"]):
        return ""
    value = match["value"]
    if value[:1] in QUOTES:
        with suppress(HydraException):  # whose quotes may be open
            value = str(OverridesParser.create().parse_override(text).value())
    return f"{lead} {match['prefix']}{shlex.quote(quote(value))}"


def quote(value: str) -> str:
    """A value as Hydra reads it unchanged: in its quotes, with `${` escaped, which OmegaConf resolves inside them."""
    escaped = REFERENCE.sub(lambda match: 2 * match[1] + r"\${", value)
    return str(QuotedString(escaped, Quote.double).with_quotes())


def no_reference(cause: OmegaConfBaseException, overrides: Iterable[str]) -> ConfigError:
    """The sentence for `${...}` that leads nowhere, and may have been meant as a part of a name."""
    key = str(cause.full_key)
    if key in FOLDERS or key.startswith(("hydra.runtime.", "hydra.job_logging.")):  # these have the folder in them
        return no_reference_in_folder()
    quoted = (
        advise("; for a path with ${ in it write", text) for text in overrides if text.lstrip("+").startswith(f"{key}=")
    )
    return ConfigError(f"{key}: {first_line(cause)}{next(quoted, '')}")


def no_reference_in_folder() -> ConfigError:
    """The sentence for a run's folder, or one above it, with a name that Hydra cannot keep from resolving."""
    return ConfigError(
        "a run's folder cannot have ${ in its path, which Hydra takes for a reference; choose another one with "
        "hydra.run.dir=FOLDER, or for a sweep with hydra.sweep.dir=FOLDER"
    )


def missing_option(error: MissingConfigException) -> ConfigError:
    """The sentence for `GROUP=OPTION` where there is no such option, or no such group."""
    group, _, option = str(error.missing_cfg_file or "").rpartition("/")
    if error.options is None:
        return ConfigError(first_line(error))
    return ConfigError(f"{group}={option} is not an option; {did_you_mean(option, error.options)}")


def nameless_option(error: Exception, overrides: Iterable[str]) -> ConfigError:
    """The sentence for `GROUP=null` and the like, of which Hydra does not say which it was."""
    parser = OverridesParser.create()
    for text in overrides:
        with suppress(HydraException, ValueError):
            override = parser.parse_override(text)
            if "." not in override.key_or_group and not isinstance(override.value(), str | list):
                group = override.key_or_group
                return ConfigError(f"{text.lstrip('+')} is not an option; write {group}=OPTION, or leave it out")
    return ConfigError(first_line(error))


def no_folder(error: OSError) -> ConfigError:
    """The sentence for a folder that Hydra could not make, or not write its records into."""
    what = error.filename or "the run's folder"
    return ConfigError(
        f"{what} could not be written: {error.strerror}; choose another folder with hydra.run.dir=FOLDER, "
        "or for a sweep with hydra.sweep.dir=FOLDER"
    )


def keys_of(error: OmegaConfBaseException) -> list[str]:
    """The keys of the structured config in which a key was not found."""
    owner = error.object_type
    return [each.name for each in fields(owner)] if isinstance(owner, type) and is_dataclass(owner) else []


def first_line(error: Exception) -> str:
    """An exception's message without what follows its first line."""
    return str(error).splitlines()[0].rstrip(". ")


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """What exists, and which of it comes closest, if one does."""
    options = sorted(options)
    close = difflib.get_close_matches(word, options, n=1)
    return (f"did you mean {close[0]}? " if close else "") + f"there are {', '.join(options)}"
