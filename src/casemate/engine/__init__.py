"""Launch plan to running VM: descriptors, wall, readiness, QMP treated as hostile, supervision, state on disk."""
