"""Which tensor of the checkpoint belongs to which parameter of the model.

transformers knows how the names on the Hub become the names in its code, and how experts that are
saved one by one fuse into one parameter. Its rules are applied here to names alone, to learn
where bytes belong; nothing is loaded or converted.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from klotski.errors import CheckpointError, ModelError
from klotski.model.shell import Shell
from klotski.model.unused import check_unused
from klotski.weights.checkpoint import Checkpoint, are_equal
from klotski.weights.layout import Part

__all__ = ["locate"]


def locate(shell: Shell, checkpoint: Checkpoint) -> dict[str, list[Part]]:
    """What each tensor of the checkpoint contributes to each parameter.

    Tensors that the model does not use (a multi-token-prediction head, say) are left out, after a warning. Parameters
    that the config ties are no longer tied in `shell` where the checkpoint has different values for them.

    Raises:
        CheckpointError: several tensors are one parameter, or experts are missing.
        ModelError: a parameter comes about by an operation other than putting tensors one after
            the other, so that it cannot be read in place; or the weights are quantized.
    """
    rules = get_model_conversion_mapping(shell.model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    wanted = shell.model.state_dict()
    sources: dict[str, dict[str | None, list[str]]] = defaultdict(lambda: defaultdict(list))
    for tensor in sorted(checkpoint.tensors, key=dot_natural_key):
        name, pattern = rename_source_key(tensor, renamings, converters, shell.model.base_model_prefix, wanted)
        if name not in wanted and tensor in wanted:
            name, pattern = tensor, None
        if name in wanted:
            sources[name][pattern].append(tensor)
    by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    parts = {name: list(join(name, groups, by_pattern, checkpoint)) for name, groups in sources.items()}
    check_unused(shell.model, checkpoint, {part.tensor for found in parts.values() for part in found})
    untie(shell, parts, checkpoint)
    return {alias: found for name, found in parts.items() for alias in shell.aliases(name)}


def untie(shell: Shell, parts: Mapping[str, Sequence[Part]], checkpoint: Checkpoint) -> None:
    """Separate tied parameters that differ in the checkpoint, as transformers does: the config is wrong then."""
    for names in shell.tied():
        first, *others = [name for name in names if name in parts] or [""]
        for name in others:
            values = [[checkpoint.tensors[part.tensor] for part in parts[each]] for each in (first, name)]
            if len(values[0]) != len(values[1]) or not all(map(are_equal, *values)):
                shell.untie(name)


def join(
    name: str, groups: dict[str | None, list[str]], converters: dict[str, Any], checkpoint: Checkpoint
) -> Iterable[Part]:
    """The parts of one parameter, from the tensors that matched each source pattern."""
    if None in groups:
        if len(groups[None]) > 1:
            files = sorted({str(checkpoint.tensors[tensor].file) for tensor in groups[None]})
            raise CheckpointError(
                f"{' and '.join(files)}: {', '.join(groups[None])} are all {name}; remove what is not the model's"
            )
        yield Part(groups[None][0])
        return
    rule = converters[next(pattern for pattern in groups if pattern is not None)]
    steps = [(type(step), getattr(step, "dim", 0)) for step in rule.operations]
    per_expert = steps[:1] == [(MergeModulelist, 0)]
    # Along the fused parameter's second dimension, which is an expert's first; else along the first.
    joined = steps[1:] if per_expert else steps
    if joined not in ([], [(Concatenate, 1 if per_expert else 0)]):
        what = " and ".join(step.__name__ for step, _ in steps)
        raise ModelError(f"{name} needs {what} of its tensors and cannot be read in place")
    if not joined and len(groups) > 1:
        raise ModelError(f"{name} is made of {len(groups)} kinds of tensors and cannot be read in place")
    start = 0
    for pattern in rule.source_patterns:
        tensors = groups.get(pattern, [])
        if per_expert and tensors and not is_numbered(tensors):
            file = checkpoint.tensors[tensors[0]].file
            raise CheckpointError(f"{file}: {', '.join(tensors)} are not the experts from 0 on; fetch it again")
        for expert, tensor in enumerate(tensors):
            yield Part(tensor, expert if per_expert else None, start)
        if tensors:
            start += checkpoint.tensors[tensors[0]].shape[0]


def is_numbered(tensors: list[str]) -> bool:
    """Whether names differ in one number alone, which counts from 0."""
    parts = tensors[0].split(".")
    return any(
        all(".".join([*parts[:place], str(number), *parts[place + 1 :]]) == name for number, name in enumerate(tensors))
        for place, part in enumerate(parts)
        if part == "0"
    )
