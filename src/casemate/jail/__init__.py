"""The wall: policy as data, steps that describe and apply themselves, reviewed seccomp rules, the hostile probe. Knows nothing of VMs."""
