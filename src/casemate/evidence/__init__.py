"""Evidence as bytes: the signed launch record. No I/O here."""
