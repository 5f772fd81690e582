"""The transformers model without weights, a batch as a coroutine, and expert arithmetic."""

from klotski.model.attention import is_blocked
from klotski.model.batch import Decoding, GenerationBatch
from klotski.model.cache import MovingLayer, keeps_all_tokens, keeps_tokens, make_cache
from klotski.model.experts import ROWS, ExpertPhase, Workspace, WorkspaceShape
from klotski.model.foresight import Foresight, keep_routers, router_bytes
from klotski.model.opening import OpenModel, open_model
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
    "is_blocked",
    "keep_routers",
    "keeps_all_tokens",
    "keeps_tokens",
    "make_cache",
    "open_model",
    "router_bytes",
]
