"""What the package brings along: the tiny model and the prompts."""

from pathlib import Path

__all__ = ["BUNDLED", "PROMPTS", "TINY"]

BUNDLED = "bundled"
"""The value of a path setting that means what is in the package."""
TINY = Path(__file__).parent / "tiny"
PROMPTS = Path(__file__).parent / "prompts.jsonl"
