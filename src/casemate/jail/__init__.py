"""The wall: policy and steps as data, reviewed seccomp rules, the hostile probe. Knows nothing of VMs."""
