"""Tests. Every process of them computes in one thread, as many of them share the processors, and asks no network.

Libraries read this once, when they are imported.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
