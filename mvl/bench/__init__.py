"""What a run costs: measured here, planned for other machines, checked on a GPU.

It imports `study` and what lies below.
"""
