"""What the user asks for: a TOML document turned into frozen types that hold every invariant."""
