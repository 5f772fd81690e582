"""The transformers model without weights, a batch as a coroutine, and expert arithmetic."""

from klotski.model.attention import can_leave_device
from klotski.model.batch import GenerationBatch
from klotski.model.cache import MovingLayer, keeps_all_tokens, keeps_tokens, make_cache, takes_padding
from klotski.model.experts import ROWS, ExpertPhase, Workspace, WorkspaceShape
from klotski.model.foresight import Foresight, keep_routers, router_bytes
from klotski.model.opening import OpenModel, open_model
from klotski.model.rope import fixed_rope_length, recomputed_length
from klotski.model.sampling import Decoding
from klotski.model.shell import Shell
from klotski.model.slices import SLICE

__all__ = [
    "ROWS",
    "SLICE",
    "Decoding",
    "ExpertPhase",
    "Foresight",
    "GenerationBatch",
    "MovingLayer",
    "OpenModel",
    "Shell",
    "Workspace",
    "WorkspaceShape",
    "can_leave_device",
    "fixed_rope_length",
    "keep_routers",
    "keeps_all_tokens",
    "keeps_tokens",
    "make_cache",
    "open_model",
    "recomputed_length",
    "router_bytes",
    "takes_padding",
]
