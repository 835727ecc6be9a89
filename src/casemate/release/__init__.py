"""Key release: a resource leaves only for a guest whose evidence is true and as its policy wants."""
