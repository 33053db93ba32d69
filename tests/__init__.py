"""Tests. Every process of them computes in one thread, as many of them share the processors; torch reads this once."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
