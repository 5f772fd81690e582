"""The transformers model without weights.

The model is built on the meta device: its code is all there, its parameters have shapes only.
`Shell` says which blocks it is made of and points a block's parameters at memory that holds them
(`bind`). Experts are never bound: their arithmetic goes through transformers' experts interface
to `ExpertPhase`, which is given an expert's parameters by name.
"""

import re
import sys
from collections.abc import Mapping
from inspect import signature
from math import prod
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig
from transformers.cache_utils import Cache
from transformers.modeling_utils import PreTrainedModel

from klotski.core import FIXED, Block
from klotski.errors import ModelError, first_line
from klotski.lanes.cuda import to_device
from klotski.model.attention import use_attention
from klotski.model.cache import keeps_all_tokens
from klotski.model.handover import EXPERTS_IMPLEMENTATION, install, register
from klotski.model.kept import find_kept
from klotski.model.rope import install_stateless_rope
from klotski.model.slices import cut_last_layer, cut_layer, cut_norm
from klotski.weights.layout import ParameterSpec

__all__ = ["Shell"]


class Shell:
    """A causal language model whose blocks live elsewhere.

    `cache_blocking`: whether attention, layers and norms work on as many tokens at a time as a CPU's caches hold. A GPU
    is best given all of them.

    Raises:
        ModelError: it has no experts, or they are not behind transformers' experts interface; or its code keeps a
            cache of its own.
    """

    def __init__(self, config: PreTrainedConfig, dtype: torch.dtype, *, cache_blocking: bool) -> None:
        self.dtype = dtype
        self.cache_blocking = cache_blocking
        register()
        try:
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(
                    config, dtype=dtype, experts_implementation=EXPERTS_IMPLEMENTATION
                )
        except Exception as error:  # a model's own code raises whatever its config leads to
            raise ModelError(f"{config.model_type} cannot be built from its config: {first_line(error)}") from error
        self.model: PreTrainedModel = model.eval()
        refuse_own_cache(self.model)
        install_stateless_rope(self.model)
        use_attention(self.model, cache_blocking=cache_blocking)
        self.model.generation_config = GenerationConfig()  # the run's own settings, nobody's defaults
        self.layers, prefix = find_layers(self.model)
        self.experts = [find_experts(layer) for layer in self.layers]
        if self.top_k < 1:
            raise ModelError(f"{config.model_type} chooses {self.top_k} experts for a token; check config.json")
        self.kept = find_kept(self.model, config)
        self._homes = find_homes(self.model)
        self._prefix = prefix
        self.specs = self._specs()
        fill_unsaved_buffers(self.model)
        head = self.model.get_output_embeddings()
        self._score = head.forward if head is not None else None
        install(list(self.layers), head)
        *layers, last = self.layers
        if cache_blocking:
            for index, layer in enumerate(layers):
                cut_layer(index, layer)
            for norm in find_norms(self.model):
                cut_norm(norm)
        if keeps_all_tokens(config):
            cut_last_layer(last, in_slices=cache_blocking)

    @property
    def expert_counts(self) -> list[int]:
        """How many experts each layer has; 0 for a layer without."""
        return [0 if experts is None else expert_count(experts) for experts in self.experts]

    @property
    def top_k(self) -> int:
        """Experts that a token chooses."""
        text = self.model.config.get_text_config()
        names = (
            "num_experts_per_tok",
            "num_experts_per_token",
            "moe_k",
            "moe_topk",
            "moe_top_k",
            "top_k_experts",
        )
        found = [getattr(text, name, None) for name in names]
        values = [max(value) if isinstance(value, list | tuple) else value for value in found if value is not None]
        return int(values[0]) if values else 2

    def score(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the head makes of tokens [T, H]: scores [T, V].

        On CPU in bfloat16, torch multiplies a strided view 150 times slower than a packed copy of it.
        """
        assert self._score is not None, "nobody asks for scores of a model without a head"
        scores: torch.Tensor = self._score(hidden.contiguous())
        return scores

    def bind(self, views: Mapping[str, torch.Tensor]) -> None:
        """Point parameters and saved buffers at `views`, by name, under every name that they have."""
        for name, view in views.items():
            for module, attribute in self._homes[name]:
                if attribute in module._parameters:
                    module._parameters[attribute] = nn.Parameter(view, requires_grad=False)
                else:
                    module._buffers[attribute] = view

    def move_unsaved(self, device: torch.device) -> None:
        """Take the buffers that no checkpoint holds to where arithmetic happens."""
        for module in self.model.modules():
            for name in module._non_persistent_buffers_set:
                if (buffer := module._buffers.get(name)) is not None:
                    module._buffers[name] = to_device(buffer, device)

    def aliases(self, name: str) -> list[str]:
        """All names of a parameter: its own, and those that are tied to it."""
        home = self._homes[name]
        return [other for other, others in self._homes.items() if others is home]

    def tied(self) -> list[list[str]]:
        """Names of one parameter, for each that has several."""
        shared = {id(homes): self.aliases(name) for name, homes in self._homes.items()}
        return [names for names in shared.values() if len(names) > 1]

    def untie(self, name: str) -> None:
        """Give a parameter that was tied to others values of its own."""
        homes = self._homes[name]
        module, attribute = next(home for home in homes if is_home(self.model, name, *home))
        homes.remove((module, attribute))
        self._homes[name] = [(module, attribute)]
        setattr(module, attribute, nn.Parameter(getattr(module, attribute).clone(), requires_grad=False))
        self.specs = self._specs()

    def _specs(self) -> dict[Block, list[ParameterSpec]]:
        """The parameters of each block."""
        layers = range(FIXED.layer, len(self.layers))
        specs: dict[Block, list[ParameterSpec]] = {Block(layer): [] for layer in layers}
        in_layer = re.compile(rf"{re.escape(self._prefix)}\.(\d+)\.")
        experts = {id(module) for module in self.experts if module is not None}
        seen: set[int] = set()
        for name, homes in self._homes.items():
            if id(homes) in seen:
                continue
            seen.add(id(homes))
            module, attribute = homes[0]
            tensor = getattr(module, attribute)
            match = in_layer.match(name)
            layer = int(match[1]) if match else FIXED.layer
            spec = ParameterSpec(name, tuple(tensor.shape), kept_dtype(self.model, name, tensor.dtype))
            if id(module) in experts and len(spec.shape) and spec.shape[0] == expert_count(module):
                for expert in range(spec.shape[0]):
                    specs.setdefault(Block(layer, expert), []).append(spec._replace(shape=spec.shape[1:]))
            else:
                specs[Block(layer)].append(spec)
        return specs


def refuse_own_cache(model: PreTrainedModel) -> None:
    """Refuse an architecture that takes no other cache than one that its own code defines.

    Raises:
        ModelError: it does.
    """
    module = type(model).__module__
    for kind in vars(sys.modules[module]).values():
        if isinstance(kind, type) and issubclass(kind, Cache) and kind.__module__ == module:
            raise ModelError(
                f"{model.config.model_type} keeps a cache of its own ({kind.__name__}), which cannot be streamed; "
                "run it with transformers"
            )


def is_home(model: nn.Module, name: str, module: nn.Module, attribute: str) -> bool:
    """Whether a parameter of this name is that attribute of that module."""
    owner, _, last = name.rpartition(".")
    return last == attribute and model.get_submodule(owner) is module


def kept_dtype(model: PreTrainedModel, name: str, dtype: torch.dtype) -> torch.dtype:
    """float32 for what the model's authors want kept in it; else the parameter's own type."""
    strict = getattr(model, "_keep_in_fp32_modules_strict", None) or ()
    return torch.float32 if any(re.search(rf"(^|\.){part}(\.|$)", name) for part in strict) else dtype


def is_experts(module: nn.Module) -> bool:
    """Whether transformers' experts interface has charge of a module."""
    return hasattr(module, "_apply_gate") and hasattr(module, "is_concatenated")


def expert_count(experts: nn.Module) -> int:
    """Experts of a layer: the first dimension of their largest fused parameter."""
    largest = max(experts.parameters(recurse=False), key=lambda parameter: prod(parameter.shape))
    return int(largest.shape[0])


def find_experts(layer: nn.Module) -> nn.Module | None:
    """A layer's experts, if it has some."""
    found = [module for module in layer.modules() if is_experts(module)]
    if len(found) > 1:
        raise ModelError(f"{type(layer).__name__} has {len(found)} groups of experts; one can be streamed")
    return found[0] if found else None


def find_layers(model: PreTrainedModel) -> tuple[nn.ModuleList, str]:
    """The list of decoder layers that the experts are in, and its name.

    Raises:
        ModelError: there are no experts behind the interface.
    """
    lists: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        if is_experts(module) and (match := re.match(r"(.*?)\.\d+\.", name)):
            owner = model.get_submodule(match[1])
            if isinstance(owner, nn.ModuleList):
                lists[match[1]] = owner
    if not lists:
        raise ModelError(
            f"{model.config.model_type} has no experts behind transformers' experts interface; "
            "klotski streams the experts of mixture-of-experts models and has nothing to do here"
        )
    if len(lists) > 1:
        raise ModelError(f"{model.config.model_type} has experts in {', '.join(lists)}; one stack can be streamed")
    prefix, layers = lists.popitem()
    return layers, prefix


def find_norms(model: PreTrainedModel) -> list[nn.Module]:
    """The modules that do nothing but norm what they are given."""
    norms = [module for module in model.modules() if type(module).__name__.endswith("Norm")]
    return [norm for norm in norms if len(signature(norm.forward).parameters) == 1]


def find_homes(model: nn.Module) -> dict[str, list[tuple[nn.Module, str]]]:
    """Every module attribute that holds each saved tensor; tied names share one list."""
    by_tensor: dict[int, list[tuple[nn.Module, str]]] = {}
    homes: dict[str, list[tuple[nn.Module, str]]] = {}
    for prefix, module in model.named_modules():
        saved: dict[str, Any] = {**module._parameters}
        saved |= {
            name: buffer for name, buffer in module._buffers.items() if name not in module._non_persistent_buffers_set
        }
        for attribute, tensor in saved.items():
            if tensor is not None:
                home = by_tensor.setdefault(id(tensor), [])
                home.append((module, attribute))
                homes[f"{prefix}.{attribute}" if prefix else attribute] = home
    return homes


def fill_unsaved_buffers(model: PreTrainedModel) -> None:
    """Compute the buffers that no checkpoint holds (rotary frequencies), as `from_pretrained` does."""
    owners: dict[str, PreTrainedModel] = {}
    for name, module in model.named_modules():
        if isinstance(module, PreTrainedModel):
            owners[name] = module
        unsaved = [key for key in module._non_persistent_buffers_set if module._buffers.get(key) is not None]
        if not unsaved:
            continue
        for key in unsaved:
            module._buffers[key] = torch.zeros_like(module._buffers[key], device="cpu")
        owner = max((prefix for prefix in owners if name.startswith(prefix)), key=len)
        with torch.no_grad():
            owners[owner]._init_weights(module)
