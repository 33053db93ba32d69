"""Inputs made against what reads the texts, files and messages of strangers: ``python -m tests.fuzz --help``."""
