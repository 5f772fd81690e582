"""Blocks: where they lie in safetensors files, the slots they are read into, and which are here."""

from klotski.weights.checkpoint import Checkpoint, resolve
from klotski.weights.layout import BlockLayout, ParameterSpec, Part, lay_out
from klotski.weights.reader import Reader, longest_segment, staging_bytes
from klotski.weights.residency import Residency, SlotKind
from klotski.weights.store import BlockStore, slot_sizes

__all__ = [
    "BlockLayout",
    "BlockStore",
    "Checkpoint",
    "ParameterSpec",
    "Part",
    "Reader",
    "Residency",
    "SlotKind",
    "lay_out",
    "longest_segment",
    "resolve",
    "slot_sizes",
    "staging_bytes",
]
