"""Blocks: where they lie in safetensors files, the slots they are read into, and which are here."""

from klotski.weights.carriers import Carrier, FromDisk, Source, ThroughHost
from klotski.weights.checkpoint import Checkpoint, find_local, has_weights, resolve
from klotski.weights.dummy import DummyReader, lay_out_dummy
from klotski.weights.layout import BlockLayout, ParameterSpec, Part, lay_out
from klotski.weights.memory import allocate, keep_small_memory, return_free_memory, whole_pages
from klotski.weights.reader import IN_FLIGHT, Reader, largest_staging
from klotski.weights.residency import Residency, SlotKind
from klotski.weights.store import DEPTH, BlockStore, slot_sizes
from klotski.weights.window import Window

__all__ = [
    "DEPTH",
    "IN_FLIGHT",
    "BlockLayout",
    "BlockStore",
    "Carrier",
    "Checkpoint",
    "DummyReader",
    "FromDisk",
    "ParameterSpec",
    "Part",
    "Reader",
    "Residency",
    "SlotKind",
    "Source",
    "ThroughHost",
    "Window",
    "allocate",
    "find_local",
    "has_weights",
    "keep_small_memory",
    "largest_staging",
    "lay_out",
    "lay_out_dummy",
    "resolve",
    "return_free_memory",
    "slot_sizes",
    "whole_pages",
]
