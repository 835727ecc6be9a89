"""Expected launch measurements: pure, from the bytes that a launch would load."""
