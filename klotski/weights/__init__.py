"""Blocks: where they lie in safetensors files, the slots they are read into, and which are here.

What the package gives needs no torch, so that a prediction does not wait for it. What handles bytes is asked of its
own module: `layout`, `reader`, `store`.
"""

from klotski.weights.finding import find_folder, find_local, has_weights, is_whole, resolve
from klotski.weights.residency import Residency, SlotKind
from klotski.weights.window import Window

__all__ = [
    "Residency",
    "SlotKind",
    "Window",
    "find_folder",
    "find_local",
    "has_weights",
    "is_whole",
    "resolve",
]
