"""The ambassador."""

__version__ = "0.1.0"
