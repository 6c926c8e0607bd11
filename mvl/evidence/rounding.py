"""What the 4-bit rounding of SmolLM2-135M can have done: `python -m mvl.evidence.rounding` measures
it and writes `data/rounding.json`.

The published file holds the model's matrices as Q4_1: blocks of 32 values, each with a step and a
smallest value of its own and 16 levels. The weights before that rounding are not in it, so its
error is estimated twice: from the steps that the file itself states, and by rounding once more.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mvl.core import files
from mvl.core.config import ROOT
from mvl.core.markdown import markdown_table
from mvl.models.drawn_weights import round_q4_1
from mvl.weights import gguf_source, sources
from mvl.weights.gguf_source import Gguf

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

SOURCE = "smollm2-135m"
RECORD, TEXT = ROOT / "data" / "rounding.json", ROOT / "data" / "rounding.txt"
TEXT_SOURCE = "Charles Darwin, On the Origin of Species (1859), Introduction, its beginning"
"Public domain; dashes are written as commas in the file."
SEED = 0


def rounded_again(matrix: Tensor) -> Tensor:
    """Rounds a matrix (rows, columns) to Q4_1 and back, with blocks that run down its columns.

    Blocks along the rows are those of the file. Rounding along them again changes nothing, because
    smallest value and step are found again; a block down a column has values of 32 such blocks.
    """
    return round_q4_1(matrix.T).T.contiguous()


def steps_of(packed: Any) -> Tensor:
    """The steps of a Q4_1 tensor as the file states them: its 20-byte blocks begin with a half."""
    raw = torch.from_numpy(packed.copy()).reshape(-1, 20)
    return raw[:, :2].contiguous().view(torch.float16).float().flatten()


def relative_errors(path: Path, layer: int) -> dict[str, dict[str, float]]:
    """For each matrix of one layer, two estimates of the rounding's relative error (RMS over RMS).

    `from_steps` takes the error as evenly spread within a step; `second` rounds once more.
    """
    model = sources.load_layer(SOURCE, layer).layer
    stored = {tensor.name: tensor for tensor in gguf_source.open_gguf(path).tensors}
    count = sources.load_config(SOURCE).num_hidden_layers
    out = {}
    for ours, theirs in ((v, k) for k, v in gguf_source.GGUF_NAMES.items()):
        weight = model[f"{ours}.weight"]
        if weight.dim() != 2:
            continue
        size = rms(weight)
        steps = steps_of(stored[f"blk.{layer % count}.{theirs}.weight"].data)
        out[ours] = {
            "from_steps": rms(steps) / math.sqrt(12) / size,
            "second": rms(rounded_again(weight) - weight) / size,
        }
    return out


def rms(values: Tensor) -> float:
    """The root of the mean square."""
    return float(values.double().square().mean().sqrt())


def whole_model(path: Path) -> LlamaForCausalLM:
    """The whole model of the file with every tensor dequantised, as transformers builds it."""
    from transformers import LlamaForCausalLM

    config = gguf_source.gguf_config(path)
    config.tie_word_embeddings = True
    model = LlamaForCausalLM(config).eval()
    state: dict[str, Tensor] = {}
    for layer in range(config.num_hidden_layers):
        tensors, norm = gguf_source.gguf_layer(path, layer, config)
        state |= {f"model.layers.{layer}.{name}": value for name, value in tensors.items()}
        state |= {f"model.norm.{name}": value for name, value in norm.items()}
    words = gguf_source.gguf_rows(path, range(config.vocab_size))
    state |= {"model.embed_tokens.weight": words, "lm_head.weight": words}
    model.load_state_dict(state)
    return model


def changed(model: LlamaForCausalLM, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Copy the model's tensors with every matrix of every layer changed and the rest as it is."""
    return {
        name: change(value) if is_matrix(name, value) else value.clone()
        for name, value in model.state_dict().items()
    }


def is_matrix(name: str, value: Tensor) -> bool:
    """True for the matrices of the layers; embedding and norms are none."""
    return name.startswith("model.layers.") and value.dim() == 2


@torch.no_grad()
def next_token_loss(model: LlamaForCausalLM, tokens: Tensor) -> float:
    """The mean cross-entropy of each next token of a text (1, tokens), in nats."""
    return float(model(input_ids=tokens, labels=tokens).loss)


def losses(path: Path) -> dict[str, float]:
    """Next-token loss of the text: as published, rounded once more, shuffled, random; in nats."""
    model = whole_model(path)
    # The model's own byte-level tokenizer adds no first token.
    text = TEXT.read_text().strip()
    tokens = torch.tensor([gguf_source.gguf_tokenizer(path).encode(text).ids])
    draw = torch.Generator().manual_seed(SEED)
    spread = model.config.initializer_range

    def shuffled(value: Tensor) -> Tensor:
        return value.flatten()[torch.randperm(value.numel(), generator=draw)].reshape(value.shape)

    def drawn(value: Tensor) -> Tensor:
        return torch.randn(value.shape, generator=draw) * spread

    found = {"as published": next_token_loss(model, tokens), "tokens": float(tokens.numel())}
    published = {name: value.clone() for name, value in model.state_dict().items()}
    for name, change in (
        ("rounded once more", rounded_again),
        ("shuffled", shuffled),
        ("random", drawn),
    ):
        model.load_state_dict(published)
        model.load_state_dict(changed(model, change))
        found[name] = next_token_loss(model, tokens)
    return found


def stored_kinds(opened: Gguf) -> dict[str, int]:
    """How many tensors of each packing the layers' matrices and the rest of the file have."""
    kinds: dict[str, int] = {}
    for tensor in opened.tensors:
        matrix = tensor.name.startswith("blk.") and "norm" not in tensor.name
        key = f"{'matrices of layers' if matrix else 'other tensors'}, {tensor.tensor_type.name}"
        kinds[key] = kinds.get(key, 0) + 1
    return kinds


def measure() -> dict[str, Any]:
    """Everything that the record holds: packing of the file, errors of the last layer, losses."""
    path = sources.fetch_source(SOURCE)
    count = sources.load_config(SOURCE).num_hidden_layers
    found = losses(path)
    return {
        "file": path.name,
        "sha256": files.sha256_file(path),
        "tensors": stored_kinds(gguf_source.open_gguf(path)),
        "layer": count - 1,
        "relative_error": relative_errors(path, count - 1),
        "text": TEXT_SOURCE,
        "text_sha256": files.sha256_file(TEXT),
        "tokens": int(found.pop("tokens")),
        "next_token_loss_nats": found,
        "uniform_loss_nats": math.log(sources.load_config(SOURCE).vocab_size),
    }


def read_record(path: Path = RECORD) -> dict[str, Any]:
    """The recorded measurement."""
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def facts() -> dict[str, str]:
    """What the pages say of the rounding, from the record."""
    return {"rounding": paragraph(), "rounding_table": table()}


def spread(percents: list[float]) -> str:
    """The smallest and the largest of some percentages, or the one that both round to."""
    ends = sorted({f"{value:.0f}" for value in (min(percents), max(percents))}, key=float)
    return " to ".join(ends)


def paragraph() -> str:
    """The rounding and its bounds in three sentences."""
    record = read_record()
    errors, loss = record["relative_error"].values(), record["next_token_loss_nats"]
    second, steps = ([100 * e[key] for e in errors] for key in ("second", "from_steps"))
    return (
        "SmolLM2-135M's layer is a **4-bit rounding**: the file holds all"
        f" {record['tensors']['matrices of layers, Q4_1']} matrices of its layers as Q4_1, 16"
        " levels for each 32 values, and the weights before that rounding were not used. The"
        f" rounding's error in a matrix of the last layer is estimated at {spread(steps)} % of the"
        f" weights' size from the file's own steps, and at {spread(second)} % by rounding once"
        " more. The whole dequantised model is still a language model: its next-token loss is"
        f" {loss['as published']:.2f} nats on {record['tokens']} tokens of English,"
        f" {loss['rounded once more']:.2f} after one more such rounding of all matrices,"
        f" {loss['shuffled']:.2f} with their values shuffled and {loss['random']:.2f} with random"
        " ones."
    )


def table() -> str:
    """Markdown tables of both bounds."""
    record = read_record()
    errors = [
        [f"`{name}`", f"{100 * error['from_steps']:.1f} %", f"{100 * error['second']:.1f} %"]
        for name, error in record["relative_error"].items()
    ]
    losses = record["next_token_loss_nats"] | {
        "every token equally likely": record["uniform_loss_nats"]
    }
    head = ["matrix of the last layer", "from the file's steps", "by one more rounding"]
    nats = [[name, f"{loss:.3f}"] for name, loss in losses.items()]
    return "\n".join(
        [
            markdown_table(head, "lrr", errors),
            "",
            f"Text: {record['text']}; {record['tokens']} tokens.",
            "",
            markdown_table(["whole model", "next-token loss, nats"], "lr", nats),
        ]
    )


if __name__ == "__main__":
    files.write_json(RECORD, measure())
