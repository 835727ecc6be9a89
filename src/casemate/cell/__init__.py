"""The cell: a throwaway VM that opens untrusted images, so that no file system of theirs is parsed by this host."""
