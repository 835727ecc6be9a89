"""Audit: find targets, collect their facts, judge them, make one report."""
