"""One thin wrapper per system call; every wrapper raises OSError with the path or the object it was about."""
