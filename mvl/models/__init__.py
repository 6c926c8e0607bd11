"""The networks: image (B, C, *S) to logits (B, K, *S), each built from one configuration.

`medvisionllama_v3.py`, `llm4seg.py` and `vit.py` are the papers' networks; `token_blocks.py` holds
what may stand between the mappers. It imports `weights`, `datasets` and `core`.
"""
