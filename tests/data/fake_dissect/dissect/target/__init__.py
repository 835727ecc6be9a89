# ruff: noqa
# mypy: ignore-errors
"""A stand-in for Dissect: what `reader/dissect_reader` uses of it, with an image that says how to misbehave."""
