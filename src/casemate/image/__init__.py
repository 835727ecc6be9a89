"""Disk image formats: bounded header readers of our own, and the built-in guest."""
