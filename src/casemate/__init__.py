"""Casemate: KVM/QEMU virtual machines in a wall that is built closed, read back live and attacked by a probe."""
