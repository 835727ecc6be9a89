"""Bytes for the guest: cloud-init seeds, Ignition configs, systemd credentials. Pure."""
