"""Measurements that can be repeated: each module is run as ``python -m benchmarks.NAME``."""
