"""The catalogue of controls as data, and one generic judge."""
