"""Reviewed seccomp rules as data: one file per part, one reason per rule."""
