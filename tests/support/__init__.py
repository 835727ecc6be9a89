"""Helpers of the tests; each is real code with tests of its own."""
