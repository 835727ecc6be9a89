"""The catalogue of controls: data, one file per layer of the lecture."""
