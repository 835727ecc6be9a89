# ruff: noqa
# mypy: ignore-errors
"""A stand-in for the library of that name."""
