"""One sentence for whatever Hydra and OmegaConf refuse: it names the setting and what exists."""

import difflib
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from klotski.errors import ConfigError

__all__ = ["did_you_mean", "explain"]


def explain(error: Exception, overrides: Sequence[str] = ()) -> ConfigError:
    """The sentence for an error of composition, or of making the run's folder."""
    if not isinstance(error, HydraException | OmegaConfBaseException):  # some of theirs are OSErrors, too
        return no_folder(error) if isinstance(error, OSError) else nameless_option(error, overrides)
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(error, MissingConfigException):
        return missing_option(error)
    if isinstance(error, OverrideParseException):
        return ConfigError(f"'{error.override}' is not an override; write GROUP=OPTION or GROUP.KEY=VALUE")
    if isinstance(cause, MissingMandatoryValue):
        return ConfigError(f"{cause.full_key} has no value and needs one; set {cause.full_key}=...")
    if isinstance(cause, ConfigKeyError | AttributeError) and isinstance(cause, OmegaConfBaseException):
        word = str(cause.full_key).rpartition(".")[2]
        return ConfigError(f"{cause.full_key} is not a setting; {did_you_mean(word, keys_of(cause))}")
    if isinstance(cause, OmegaConfBaseException):
        return ConfigError(f"{cause.full_key}: {first_line(cause)}")
    if match := re.match(r"Multiple values for (\S+)\.", str(error)):
        return ConfigError(f"+{match[1]} adds a second option; write {match[1]}=OPTION, without the +")
    if match := re.match(r"Ambiguous value for argument '(.*)'", str(error)):
        return ConfigError(f"{match[1]} is more than one value; add -m for one run with each")
    return ConfigError(first_line(error))


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
