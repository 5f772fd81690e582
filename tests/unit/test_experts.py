"""Experts over a whole group are what each module's own code computes, however the group is made up."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from itertools import pairwise
from math import nan
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from klotski.model import experts as arithmetic
from klotski.model.experts import ROWS, ExpertPhase, ExpertsCall, Workspace, WorkspaceShape, count_tokens
from klotski.weights.memory import PAGE
from tests.unit.fakes import examples

MODULES = {
    "gated": ("mixtral", "MixtralExperts"),
    "transposed": ("aria", "AriaExperts"),
    "interleaved, transposed, with biases and a gate of its own": ("gpt_oss", "GptOssExperts"),
    "without a gate": ("nemotron_h", "NemotronHExperts"),
    "normed afterwards": ("muse_spark", "MuseSparkExperts"),
}


def known(modules: Mapping[str, tuple[str, str]]) -> dict[str, Callable[[Any], nn.Module]]:
    """Those that this version of transformers has, and has behind its experts interface."""
    found: dict[str, Callable[[Any], nn.Module]] = {}
    for kind, (model, name) in modules.items():
        with suppress(ModuleNotFoundError):
            experts = getattr(import_module(f"transformers.models.{model}.modeling_{model}"), name)
            if hasattr(experts, "_apply_gate"):
                found[kind] = experts
    return found


KINDS = known(MODULES)
assert {"gated", "without a gate"} < KINDS.keys()


def make_experts(kind: str, count: int, hidden: int, inner: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Random experts, whose own code knows nothing of this package."""
    config = SimpleNamespace(
        num_local_experts=count,
        n_routed_experts=count,
        moe_num_experts=count,
        hidden_size=hidden,
        moe_hidden_size=hidden,
        moe_latent_size=None,
        intermediate_size=inner,
        moe_intermediate_size=inner,
        hidden_act="silu",
        mlp_hidden_act="relu2",
        swiglu_alpha=1.7,
        swiglu_limit=0.5,
        post_norm_eps=1e-5,
        _experts_implementation="eager",
    )
    module = KINDS[kind](config)
    generator = torch.Generator().manual_seed(count * hidden + inner)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / hidden**0.5
    return module.to(dtype).requires_grad_(False)


def views_of(module: nn.Module, expert: int) -> Mapping[str, torch.Tensor]:
    return {name: parameter[expert] for name, parameter in module.named_parameters(recurse=False)}


def make_call(module: nn.Module, tokens: int, count: int, top_k: int, hidden: int, favour: float) -> ExpertsCall:
    """Random tokens, each with `top_k` experts; the lower ones are chosen more often the more they are favoured."""
    generator = torch.Generator().manual_seed(tokens * count + top_k)
    dtype = next(module.parameters()).dtype
    scores = torch.rand((tokens, count), generator=generator) - favour * torch.arange(count)
    weights, choices = scores.topk(top_k, dim=-1)
    return ExpertsCall(
        module, torch.randn((tokens, hidden), generator=generator).to(dtype), choices, weights.softmax(-1)
    )


def split(call: ExpertsCall, sizes: Sequence[int]) -> list[ExpertsCall]:
    """One question as several, of so many tokens each and what is left."""
    ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
    ends = [end for end in ends if end < len(call.hidden)]
    parts = zip(*(tensor.tensor_split(ends) for tensor in call[1:]), strict=True)
    return [ExpertsCall(call.module, *part) for part in parts]


def workspace(call: ExpertsCall, inner: int, spare: int = 0) -> Workspace:
    """Full of what must not come out of it again."""
    hidden, dtype = call.hidden.shape[1], call.hidden.dtype
    module: Any = call.module
    shape = WorkspaceShape(module.num_experts, call.choices.shape[1], hidden, inner)
    space = Workspace(shape, len(call.hidden) + spare, dtype)
    for memory in (space.tokens, space.outputs, space.gathered, space.inside, space.gated):
        memory.fill_(nan)
    return space


def run(
    calls: Sequence[ExpertsCall],
    space: Workspace,
    order: Sequence[int],
    stacked: Sequence[int] = (),
    below: Sequence[int] = (),
) -> torch.Tensor:
    """The outputs of all calls, one after the other; experts in this order, those without tokens left out.

    Those that are `stacked` are computed at once, and those `below` apart from all others.
    """
    counts = count_tokens(calls, torch.cat([call.choices for call in calls]).numpy())
    below = [expert for expert in below if counts[expert]]
    phase = ExpertPhase(calls, space, counts, stacked, below)
    if stacked:
        module = calls[0].module
        views = {name: each[list(stacked)] for name, each in module.named_parameters(recurse=False)}
        phase.compute_stack(stacked, views)
    for expert in order:
        if expert in below:
            phase.compute_below(expert, views_of(calls[0].module, expert))
        elif counts[expert] and expert not in stacked:
            phase.compute(expert, views_of(calls[0].module, expert))
    if below:
        phase.answer()
    outputs = phase.outputs()
    assert [output.shape for output in outputs] == [call.hidden.shape for call in calls]
    return torch.cat(outputs)


@contextmanager
def pieces_of(rows: int, summed: int) -> Iterator[None]:
    """Work in smaller pieces than there is reason to, so that a few tokens are several of them."""
    with patch.multiple(arithmetic, ROWS=rows, SUMMED=summed):
        yield


@pytest.mark.parametrize("more", [0, 1, 100, 5000])
def test_groups_of_few_tokens_leave_alone_what_a_workspace_has_for_many(more: int) -> None:
    few, hidden, top_k = 5, 16, 2
    module = make_experts("gated", 4, hidden, 24)
    call = make_call(module, few, 4, top_k, hidden, 0.0)
    space = workspace(call, 48, more)
    spare = space.spare(few)
    assert len(spare) >= more * top_k * hidden * call.hidden.itemsize - PAGE
    if len(spare):
        assert spare.data_ptr() % PAGE == 0
    spare.fill_(7)
    assert torch.isfinite(run([call], space, range(4))).all()
    assert (spare == 7).all()


PIECES = st.tuples(st.sampled_from([16, 32, ROWS]), st.sampled_from([3, 512]))


@pytest.mark.parametrize("kind", KINDS)
@given(
    data=st.data(),
    tokens=st.one_of(st.integers(1, 40), st.integers(1, 200)),
    count=st.integers(1, 6),
    hidden=st.integers(1, 9),
    inner=st.integers(1, 9),
    favour=st.sampled_from([0.0, 0.1, 10.0]),
    pieces=PIECES,
)
@examples(40)
def test_a_group_gets_what_the_modules_own_code_computes(
    kind: str,
    data: st.DataObject,
    tokens: int,
    count: int,
    hidden: int,
    inner: int,
    favour: float,
    pieces: tuple[int, int],
) -> None:
    # In float32, what cancels out in a sum may be off by more than a share of what is left.
    module = make_experts(kind, count, hidden, inner, torch.float64)
    call = make_call(module, tokens, count, data.draw(st.integers(1, count)), hidden, favour)
    sizes = data.draw(st.lists(st.integers(1, tokens), max_size=4))
    order = data.draw(st.permutations(range(count)))
    below = data.draw(st.lists(st.sampled_from(range(count)), unique=True))
    with pieces_of(*pieces):
        space = workspace(call, 2 * inner, data.draw(st.integers(0, 20)))
        outputs = run(split(call, sizes), space, order, below=below)
    expected = module(call.hidden, call.choices, call.weights)
    torch.testing.assert_close(outputs, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), tokens=st.integers(1, 100), count=st.integers(2, 6), pieces=PIECES)
@examples(20)
def test_a_stack_of_experts_comes_to_what_each_of_them_does(
    kind: str, dtype: torch.dtype, data: st.DataObject, tokens: int, count: int, pieces: tuple[int, int]
) -> None:
    module = make_experts(kind, count, hidden=16, inner=24, dtype=dtype)
    call = make_call(
        module, tokens, count, data.draw(st.integers(1, count)), 16, data.draw(st.sampled_from([0.0, 10.0]))
    )
    sizes = data.draw(st.lists(st.integers(1, tokens), max_size=3))
    stacked = data.draw(st.lists(st.sampled_from(range(count)), min_size=2, unique=True))
    with pieces_of(*pieces):
        apart = run([call], workspace(call, 48), range(count)).clone()
        space = workspace(call, 48, data.draw(st.sampled_from([0, 100])))
        together = run(split(call, sizes), space, range(count), stacked)
    accuracy = 1e-5 if dtype is torch.float32 else 0.02
    largest = max(1.0, float(apart.abs().max()))  # of what is rounded on the way to any of them
    torch.testing.assert_close(together, apart, rtol=accuracy, atol=accuracy * largest)


@given(rows=st.lists(st.sampled_from([0, 16, 32, 160]), min_size=1), most=st.sampled_from([16, 64, 128]))
def test_runs_are_as_few_as_there_is_room_for(rows: list[int], most: int) -> None:
    found = list(arithmetic.runs(rows, most))
    assert [index for run in found for index in range(*run)] == list(range(len(rows)))
    totals = [sum(rows[slice(*run)]) for run in found]
    assert all(total <= most or end - begin == 1 for total, (begin, end) in zip(totals, found, strict=True))
    assert all(sum(rows[former[0] : latter[0] + 1]) > most for former, latter in pairwise(found))


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), tokens=st.integers(1, 100), count=st.integers(1, 6), pieces=PIECES)
@examples(20)
def test_neither_the_batches_nor_the_order_of_experts_change_a_bit(
    kind: str, data: st.DataObject, tokens: int, count: int, pieces: tuple[int, int]
) -> None:
    module = make_experts(kind, count, hidden=8, inner=12)
    call = make_call(module, tokens, count, data.draw(st.integers(1, count)), 8, favour=0.1)
    sizes = data.draw(st.lists(st.integers(1, tokens), max_size=4))
    order = data.draw(st.permutations(range(count)))
    with pieces_of(*pieces):
        one = run([call], workspace(call, 24), range(count)).clone()
        other = run(split(call, sizes), workspace(call, 24), order)
    assert torch.equal(one, other)


@given(st.lists(st.integers(1, 90), min_size=2, max_size=4))
@examples(20)
def test_one_phase_leaves_nothing_for_the_next(tokens: list[int]) -> None:
    module = make_experts("gated", 4, hidden=8, inner=12)
    calls = [make_call(module, each, 4, 2, 8, favour=0.1) for each in tokens]
    shared = workspace(max(calls, key=lambda call: len(call.hidden)), 24)
    for call in calls:
        assert torch.equal(run([call], shared, range(4)), run([call], workspace(call, 24), range(4)))


def test_more_tokens_than_one_product_takes_are_multiplied_in_several() -> None:
    module = make_experts("gated", 3, hidden=8, inner=12)
    call = make_call(module, 2 * ROWS + 37, 3, 2, 8, favour=10.0)  # every token chooses the first two
    outputs = run([call], workspace(call, 24), [2, 1, 0])
    torch.testing.assert_close(outputs, module(call.hidden, call.choices, call.weights), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_in_bfloat16_a_group_is_as_near_to_the_truth_as_the_modules_own_code(kind: str) -> None:
    module = make_experts(kind, 4, hidden=64, inner=48, dtype=torch.bfloat16)
    call = make_call(module, 70, 4, 3, 64, favour=0.1)
    outputs = run([call], workspace(call, 96), range(4)).float()
    own = module(call.hidden, call.choices, call.weights).float()
    truth = make_experts(kind, 4, hidden=64, inner=48)
    for parameter, rounded in zip(truth.parameters(), module.parameters(), strict=True):
        parameter.copy_(rounded)
    expected = truth(call.hidden.float(), call.choices, call.weights)
    assert (outputs - expected).norm() <= 1.2 * (own - expected).norm()


def test_the_tokens_of_each_expert_are_counted_over_all_calls() -> None:
    module = make_experts("gated", 5, hidden=2, inner=2)
    choices = torch.tensor([[0, 3], [3, 1], [3, 0]])
    calls = [
        ExpertsCall(module, torch.zeros(len(each), 2), each, torch.ones(each.shape))
        for each in (choices[:2], choices[2:])
    ]
    assert count_tokens(calls, choices.numpy()) == (2, 1, 0, 3, 0)


@given(st.integers(1, 2000), st.builds(WorkspaceShape, *(st.integers(1, most) for most in (64, 8, 64, 64))))
@examples(50)
def test_a_workspace_takes_what_it_says_and_its_products_are_bounded(tokens: int, shape: WorkspaceShape) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        space = Workspace(shape, tokens, dtype)
        taken = sum(
            memory.nbytes for memory in (space.tokens, space.outputs, space.gathered, space.inside, space.gated)
        )
        assert taken == shape.nbytes(tokens, dtype.itemsize)
    assert len(space.gathered) <= ROWS
    more = [shape.nbytes(10_000 + each, 1) for each in range(3)]
    beyond = (1 + shape.top_k) * shape.hidden
    assert more[2] - more[1] == more[1] - more[0] == beyond, "a token costs what it brings"
