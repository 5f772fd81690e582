"""What the package brings along: the tiny model and the prompts."""

from pathlib import Path

__all__ = ["BUNDLED", "PROMPTS", "SHAPES", "TINY"]

BUNDLED = "bundled"
"""The value of a path setting that means what is in the package."""
TINY = Path(__file__).parent / "tiny"
SHAPES = Path(__file__).parent / "shapes"
"""Configs of models whose weights are too large to ship."""
PROMPTS = Path(__file__).parent / "prompts.jsonl"
