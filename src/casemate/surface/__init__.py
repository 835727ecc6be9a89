"""The device model of a machine: who handles each part, what its history is, what could go. Pure."""
