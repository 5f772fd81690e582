"""No tensor leaves for a device but on a lane: the ways there are in two files, and nobody else has one."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import klotski

ROOT = Path(klotski.__file__).parent
WAYS = {Path("lanes/cuda.py"), Path("executors/devices.py")}  # the lanes, and what is called on them


def departures(source: str) -> Iterator[str]:
    """Where code could take a tensor to another device, or ask one, with the line."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value=ast.Name(id="torch"), attr="cuda" | "accelerator"):
                yield f"line {node.lineno}: torch.{node.attr}"
            case ast.Call(func=ast.Attribute(attr="cuda" | "pin_memory" as name)):
                yield f"line {node.lineno}: {name}()"
            case ast.keyword(arg="non_blocking" | "pin_memory" as name):
                yield f"line {node.lineno}: {name}="
            case ast.Call(func=ast.Attribute(attr="to"), args=args, keywords=keywords):
                if keywords or not all(is_dtype(each) for each in args):
                    yield f"line {node.lineno}: to()"
            case ast.keyword(arg="device", value=value) if not is_where_another_is(value):
                yield f"line {node.lineno}: device={ast.unparse(value)}"


def is_dtype(node: ast.expr) -> bool:
    """Whether it names a type of numbers, as the code of this project does."""
    return ast.unparse(node).endswith("dtype")


def is_where_another_is(node: ast.expr) -> bool:
    """Whether new numbers are made where others are, in CPU memory, or nowhere."""
    return ast.unparse(node).endswith(".device") or ast.unparse(node) in ("'meta'", "'cpu'", "device")


@pytest.mark.parametrize("file", sorted(ROOT.rglob("*.py")), ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_leaves_for_a_device_outside_of_a_lane(file: Path) -> None:
    if file.relative_to(ROOT) not in WAYS:
        assert not list(departures(file.read_text()))


@pytest.mark.parametrize(
    "code",
    [
        "x.cuda()",
        "torch.cuda.synchronize()",
        "x.to(device)",
        "x.to('cuda', x.dtype)",
        "x.to(x.dtype, non_blocking=True)",
        "x.copy_(y, non_blocking=True)",
        "x.pin_memory()",
        "torch.ones(3, device='cuda')",
        "torch.ones(3, device=self.place)",
        "torch.accelerator.current_stream()",
    ],
)
def test_a_way_out_is_seen(code: str) -> None:
    assert list(departures(code))


def test_numbers_may_change_their_type_and_be_made_beside_others() -> None:
    assert not list(departures("x.to(y.dtype); torch.ones(3, device=x.device); torch.empty(2, device='meta')"))
