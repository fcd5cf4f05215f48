"""The version, in one place; setup.py reads it by pattern."""

__version__ = "0.1.0"
