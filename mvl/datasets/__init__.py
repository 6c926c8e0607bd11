"""Data: what the tasks are, how they are fetched and verified, how they are split, and what a
network sees.

It imports `core`.
"""
