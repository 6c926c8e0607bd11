"""Knock-outs of a trained network's block at inference: what the block says is replaced, the rest
of the network stays as it was trained."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from mvl.core.seeds import draw_seed
from mvl.core.shapes import Tokens
from mvl.models.control_blocks import TokenBlock
from mvl.models.drawn_weights import redrawn_tensor

BRANCHES = ("as_trained", "zero", "mean", "shuffled_tokens", "attention_off")
"Interventions on the block's own part h."
WEIGHTS = {"shuffled_weights": "shuffled", "random_weights": "random_matched"}
"Interventions on the block's weights, and how their values are redrawn."
INTERVENTIONS = (*BRANCHES, *WEIGHTS, "no_block")
"All of them, in the order of their rows; `no_block` skips the mappers too."
SIZES = ("input_norm", "branch_norm", "variation_ratio", "cosine")
"What is measured of the block's input x and its own part h."


class Intervened(nn.Module):
    """A block whose own part h is replaced, in the block's place; it notes the sizes of x and h.

    as_trained: h as it is; zero: h = 0; mean: h = its mean over the tokens; shuffled_tokens: token
    t gets h_t of the tokens in another order, while x stays in its own; attention_off: h of each
    token by itself, so that it attends to itself alone (words of text guidance stay before it).
    """

    def __init__(self, block: TokenBlock, kind: str, seed: int) -> None:
        super().__init__()
        self.block = block
        self.kind = kind
        self.seed = seed
        self.noted: list[dict[str, float]] = []

    def branch(self, tokens: Tokens) -> Tokens:
        """The replaced h."""
        if self.kind == "shuffled_tokens":
            generator = torch.Generator().manual_seed(draw_seed(self.seed, "usage", "tokens"))
            order = torch.randperm(tokens.shape[1], generator=generator).to(tokens.device)
            return self.block.branch(tokens[:, order])
        if self.kind == "attention_off":
            alone = tokens.reshape(-1, 1, tokens.shape[2])  # sequences of one token
            return self.block.branch(alone).reshape(tokens.shape)
        branch = self.block.branch(tokens)
        if self.kind == "zero":
            return torch.zeros_like(branch)
        if self.kind == "mean":
            return branch.mean(dim=1, keepdim=True).expand_as(branch)
        return branch

    def forward(self, tokens: Tokens) -> Tokens:
        """What the block would give with the replaced h."""
        branch = self.branch(tokens)
        self.noted += [sizes(x, h) for x, h in zip(tokens, branch)]
        if self.kind == "as_trained":
            return self.block(tokens)  # to the bit what the run's own evaluation saw
        return self.block.join(branch, tokens)


def sizes(tokens: Tensor, branch: Tensor) -> dict[str, float]:
    """Sizes of one case's tokens x (T, D) and block's own part h (T, D), computed in float64.

    input_norm, branch_norm: means over tokens of |x_t| and |h_t|. variation_ratio: the root mean
    square over tokens of |h_t - mean h|, over the same of x; nan where x does not vary. cosine: the
    mean over tokens of h_t . x_t / (|h_t| |x_t|), 0 for a token where either is 0.
    """
    x, h = tokens.double(), branch.double()
    varied = spread(x)
    return {
        "input_norm": float(x.norm(dim=1).mean()),
        "branch_norm": float(h.norm(dim=1).mean()),
        "variation_ratio": spread(h) / varied if varied > 0 else math.nan,
        "cosine": float(functional.cosine_similarity(h, x, dim=1).mean()),
    }


def spread(tokens: Tensor) -> float:
    """The root mean square over tokens (T, D) of their distance from the mean token."""
    return float((tokens - tokens.mean(dim=0)).square().sum(dim=1).mean().sqrt())


def with_redrawn_weights(block: TokenBlock, kind: str, seed: int) -> TokenBlock:
    """A copy of the block whose weights are redrawn, tensor by tensor; text guidance's words stay.

    The seed is not that of the block's own weights: the same draw would give a random block back.
    """
    other = copy.deepcopy(block)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if name != "words":
                new = redrawn_tensor(name, parameter.detach().cpu(), kind, draw_seed(seed, "usage"))
                parameter.copy_(new)
    return other


def intervened_block(block: TokenBlock, intervention: str, seed: int) -> nn.Module:
    """What takes the block's place under an intervention."""
    if intervention == "no_block":
        return nn.Identity()
    if intervention in WEIGHTS:
        redrawn = with_redrawn_weights(block, WEIGHTS[intervention], seed)
        return Intervened(redrawn, "as_trained", seed)
    return Intervened(block, intervention, seed)


@contextmanager
def replaced(network: nn.Module, block: nn.Module, no_mappers: bool = False) -> Iterator[None]:
    """The network with another block, and perhaps without its mappers, until the context ends."""
    kept = {"block": network.block, "mapper1": network.mapper1, "mapper2": network.mapper2}
    network.block = block
    if no_mappers:
        network.mapper1 = nn.Identity()
        network.mapper2 = nn.Identity()
    try:
        yield
    finally:
        for name, module in kept.items():
            setattr(network, name, module)
