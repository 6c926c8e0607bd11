"""A tiny random checkpoint of the Llama family, and the real SmolLM2 where it has been fetched."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a three-layer random Llama checkpoint in several shards."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
                         vocab_size=64, rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "norm" in name:
                tensor.uniform_(0.5, 1.5)
    folder = tmp_path_factory.mktemp("tiny-llama")
    model.save_pretrained(folder, max_shard_size="60KB")
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The SmolLM2 GGUF; skips where it has not been fetched."""
    from mvl.models.llm_sources import SOURCES, fetch_source, weights_dir

    name = Path(SOURCES["smollm2-135m"].member).name
    if not (weights_dir() / name).is_file():
        pytest.skip("SmolLM2 is not fetched; run `mvl fetch weights`")
    return fetch_source("smollm2-135m")
