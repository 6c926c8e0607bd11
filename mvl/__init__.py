"""Reproducible companion to MedVisionLlama (arXiv 2410.02458) and LLM4Seg (arXiv 2506.18034)."""

__version__ = "0.1.0"
