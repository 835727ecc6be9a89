"""Shows what an audit found, in the formats that people and programs read."""
