"""Klotski runs mixture-of-experts language models that are bigger than memory."""

__all__ = ["__version__"]

__version__ = "0.1.0"
