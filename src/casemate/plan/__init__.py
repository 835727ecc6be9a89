"""Pure: specification and facts become a launch plan; the only writer of QEMU option strings."""
