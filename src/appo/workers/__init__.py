"""Threads and processes that work under a time limit, and attempts that are made again."""
