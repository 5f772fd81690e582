"""A layer's router, asked early: about the tokens as they come in, before the layer's dense part is here.

What attention adds to a token is small beside what it is already. So a layer's choice can be guessed
at its entry, by copies of its router and of the norm before it that stay for the whole run: a
thousandth of the model.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from inspect import signature
from typing import Any

import torch
from torch import nn

from klotski.model.shell import Shell

__all__ = ["Foresight", "keep_routers", "router_bytes"]

ROUTER = re.compile(r"(^|\.)(gate|router|wg)$")
NORM = re.compile(r"(^|\.)(post_attention_layernorm|pre_ff_layernorm|pre_mlp_layernorm|ffn_norm|norm2)$")
ASKED = 1024  # tokens of a batch, at most; a prompt's neighbours have much the same to say


class Foresight:
    """Copies of norms and routers by layer, with their weights."""

    def __init__(self, routers: Mapping[int, nn.Module], experts: Sequence[int], top_k: int) -> None:
        """`experts`: how many each layer has."""
        self._routers = routers
        self._experts = experts
        self._top_k = top_k

    def outlook(self, layer: int, hidden: torch.Tensor) -> list[float] | None:
        """Tokens that each expert of a layer may expect of its input [..., H]; None where there is no router to ask."""
        if layer not in self._routers:
            return None
        tokens = hidden.reshape(-1, hidden.shape[-1])
        asked = tokens[:: -(-len(tokens) // ASKED)]
        choices = self._choices(self._routers[layer](asked))
        counts = choices.flatten().bincount(minlength=self._experts[layer])
        weight = len(tokens) / len(asked)
        return [count * weight for count in counts.tolist()]

    def _choices(self, said: Any) -> torch.Tensor:
        """The experts that a router chose [T, K]: most say them last; a plain projection leaves the choice to us."""
        if isinstance(said, torch.Tensor):
            return said.topk(self._top_k, dim=-1).indices
        choices: torch.Tensor = next(part for part in reversed(said) if not part.is_floating_point())
        return choices


def keep_routers(shell: Shell, views_of: Callable[[int], Mapping[str, torch.Tensor]]) -> Foresight:
    """Copies of a model's routers. `views_of`: the parameters of a layer's dense part, good until it is asked again."""
    kept = {}
    for layer, modules in routers_of(shell).items():
        views = views_of(layer)
        kept[layer] = nn.Sequential(*(copy_of(name, module, views) for name, module in modules.items()))
    return Foresight(kept, shell.expert_counts, shell.top_k)


def copy_of(name: str, module: nn.Module, views: Mapping[str, torch.Tensor]) -> nn.Module:
    """A copy of a module with weights of its own. Of a router that asks for more than tokens, the projection alone."""
    weights = {key: views[f"{name}.{key}"].clone() for key in module.state_dict()}
    if len(signature(type(module).forward).parameters) > 2:  # itself, and the tokens
        experts, hidden = weights["weight"].shape
        projection = nn.Linear(hidden, experts, bias=False, device="meta")
        projection.weight = nn.Parameter(weights["weight"], requires_grad=False)
        return projection
    copied = deepcopy(module)
    copied.__dict__.pop("forward", None)  # the shell's, which would go on with the original's weights
    copied.load_state_dict(weights, assign=True)
    return copied


def router_bytes(shell: Shell) -> int:
    """Bytes of all copies."""
    modules = [module for modules in routers_of(shell).values() for module in modules.values()]
    return sum(tensor.nbytes for module in modules for tensor in module.state_dict().values())


def routers_of(shell: Shell) -> dict[int, dict[str, nn.Module]]:
    """Each layer's norm and router, by their names in the model; no layer whose router is not a module of its own."""
    names = {module: name for name, module in shell.model.named_modules()}
    found = {}
    for layer, module in enumerate(shell.layers):
        norms = {names[each]: each for each in module.modules() if NORM.search(names[each])}
        routers = {names[each]: each for each in module.modules() if is_router(each, names[each], shell, layer)}
        if len(routers) == 1:
            found[layer] = (norms if len(norms) == 1 else {}) | routers
    return found


def is_router(module: nn.Module, name: str, shell: Shell, layer: int) -> bool:
    """Whether a module says which of the layer's experts its input goes to."""
    shape = tuple(getattr(getattr(module, "weight", None), "shape", ()))
    return bool(ROUTER.search(name)) and len(shape) == 2 and shape[0] == shell.expert_counts[layer]
