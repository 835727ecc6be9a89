"""What a stranger would learn from an image: rules as data, the engine that applies them, redacted findings."""
