"""A study is a grid of runs: which there are, which are done, how they are started, their tables.

It imports `training` and what lies below.
"""
