"""What the package brings along: the tiny model and the prompts."""

from pathlib import Path

__all__ = ["BUNDLED", "PROMPTS", "PUBLISHED", "SHAPES", "TINY"]

BUNDLED = "bundled"
"""The value of a path setting that means what is in the package."""
TINY = Path(__file__).parent / "tiny"
SHAPES = Path(__file__).parent / "shapes"
"""Configs of models whose weights are too large to ship."""
PUBLISHED = Path(__file__).parent / "published.csv"
"""Output tokens a second that the Klotski paper reports (ASPLOS 2025, doi 10.1145/3676641.3716261)."""
PROMPTS = Path(__file__).parent / "prompts.jsonl"
