"""One run: the loop, its objective, checkpoints, evaluation and prediction.

`loop.py` is the training loop; `run.py` begins, evaluates and seals a run. It imports `models`,
`weights`, `datasets` and `core`.
"""
