"""Search: the tool, and the backends that answer it."""
