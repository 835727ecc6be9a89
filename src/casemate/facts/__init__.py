"""What is there: facts with their source, read through one bounded, read-only view of the system."""
