"""Calls that must end in time: in threads, in processes, at a rate, and again where they fail."""
