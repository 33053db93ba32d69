"""Where to branch."""
