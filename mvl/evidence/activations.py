"""What the frozen block does to the features: effective rank, activation IoU and activation maps
before and after it, measured from weights.

Source: effective rank, LSVR and activation IoU as in LLM4Seg's figure "vis" (arXiv 2506.18034);
pseudo-masks as in LM4VisualEncoding (arXiv 2310.12973), section on information filtering. Differs:
neither paper's rule for map and threshold was recovered; ours is stated below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from mvl.core import run_folder
from mvl.core.columns import RUN_KEYS, run_columns
from mvl.core.config import Config
from mvl.datasets.case_store import CaseStore
from mvl.datasets.task_data import open_task
from mvl.evidence.predicted import best_slice, view
from mvl.models.vit import ViTBaseline
from mvl.training.objective import predict_probabilities
from mvl.training.trained import Predictor, load_run

NAMED = "embedding encoder bottleneck mapper1 block mapper2 fusion decoder".split()
STAGES = dict(zip(NAMED, NAMED)) | {"decoder1": "decoder"}
"Stage of a network = its name in the tables; `decoder1` is a CNN's last decoder stage."
MEASURES = (
    "effective_rank effective_rank_centred lsvr activation_iou activation_iou_best entropy"
).split()
"""Per case and stage; the centred rank is that of the tokens with their mean token taken off, which
one channel of equal large values cannot swamp."""
COLUMNS = [*RUN_KEYS, "case", "stage", "tokens", "width", *MEASURES, "label_share", "weights"]
"Columns of activations.csv; `weights` are the first 12 digits of the sha256 of the run's weights."
LINEAR = {2: "bilinear", 3: "trilinear"}

Features = Float[Tensor, "C *cells"]
Matrix = Float[Tensor, "T D"]
Map = Float[np.ndarray, "*grid"]
Mask = Bool[np.ndarray, "*grid"]


def singular_shares(tokens: Matrix) -> Float[np.ndarray, " n"]:
    """Singular values of the tokens, largest first, divided by their sum; what is below the
    rounding of float32 counts as 0."""
    wide = tokens.double()
    gram = wide.T @ wide if wide.shape[0] > wide.shape[1] else wide @ wide.T
    squares = torch.linalg.eigvalsh(gram).flip(0).clamp(min=0).numpy()
    squares[squares < squares[0] * len(squares) * np.finfo(np.float64).eps] = 0
    values = np.sqrt(squares)
    return values / max(values.sum(), np.finfo(np.float64).tiny)


def effective_rank(shares: Float[np.ndarray, " n"]) -> float:
    """Entropy of the singular values' shares, -sum p log p, nats: 0 for rank one, log n for n equal
    ones."""
    kept = shares[shares > 0]
    return abs(float(-(kept * np.log(kept)).sum()))


def lsvr(shares: Float[np.ndarray, " n"]) -> float:
    """Minus the logarithm of the largest singular value's share: 0 for rank one, log n for n equal
    ones."""
    return abs(-math.log(shares[0])) if shares[0] > 0 else 0.0


def activation_map(features: Features) -> Float[Tensor, "*cells"]:
    """How far each position's features are from the case's mean features: each channel's mean over
    the positions is taken off, then the L2 norm over channels."""
    around = features.flatten(1) - features.flatten(1).mean(dim=1, keepdim=True)
    return around.norm(dim=0).reshape(features.shape[1:])


def on_grid(cells: Float[Tensor, "*cells"], size: Sequence[int]) -> Map:
    """A map brought to the network's grid by linear interpolation."""
    return functional.interpolate(
        cells[None, None], size=tuple(size), mode=LINEAR[len(size)], align_corners=False
    )[0, 0].numpy()


def highest(values: Map, count: int) -> Mask:
    """The `count` highest voxels, exactly; of equal ones the first in row-major order."""
    flat = values.ravel()
    if count == 0:
        return np.zeros(values.shape, dtype=bool)
    edge = np.partition(flat, flat.size - count)[flat.size - count]
    mask = flat > edge
    mask[np.flatnonzero(flat == edge)[: count - int(mask.sum())]] = True
    return mask.reshape(values.shape)


def iou(first: Mask, second: Mask) -> float:
    """Voxels in both over voxels in either; 1 where both are empty."""
    either = int((first | second).sum())
    return int((first & second).sum()) / either if either else 1.0


def activation_iou(values: Map, label: Mask) -> tuple[float, float]:
    """IoU of the label with as many voxels as it has: the highest of the map; and the better of the
    highest and the lowest.

    Every map is thresholded at the label's own share of the grid, so that none gains by marking
    more.
    """
    count = int(label.sum())
    up = iou(highest(values, count), label)
    return up, max(up, iou(highest(-values, count), label))


def chance_iou(share: float) -> float:
    """IoU of a label that fills `share` of the grid with as many voxels drawn at random, in a large
    grid."""
    return share / (2 - share)


def entropy(values: Map) -> float:
    """Entropy of the map's squares' shares over voxels, over its largest value: 1 for an even map,
    0 for one bright voxel. The lower the sharper."""
    squares = values[values > 0].astype(np.float64) ** 2
    if not squares.size:
        return 1.0
    p = squares / squares.sum()
    return float(-(p * np.log(p)).sum() / math.log(values.size))


def as_matrix(stage: Tensor) -> Matrix:
    """Tokens (T, D) of one case's tokens (1, T, D) or features (1, C, *cells)."""
    return stage[0] if stage.ndim == 3 else stage[0].flatten(1).T


def as_features(stage: Tensor, grid: Sequence[int]) -> Features:
    """Features (C, *cells) of one case's tokens (1, T, D), row-major on `grid`, or features (1, C,
    *cells)."""
    return stage[0].T.reshape(-1, *grid) if stage.ndim == 3 else stage[0]


def token_grid(network: nn.Module, stages: dict[str, Tensor]) -> tuple[int, ...]:
    """Cells of the token grid: the ViT's patches, or the CNN's bottleneck."""
    vit = getattr(network, "vit", network)
    if isinstance(vit, ViTBaseline):
        return tuple(s // p for s, p in zip(vit.img_size, vit.patch_size))
    return tuple(stages["bottleneck"].shape[2:])


class Measured:
    """A finished run's network and the cases that it is looked at with."""

    def __init__(self, run_dir: Path, data_dir: Path | None, cases: Sequence[str]) -> None:
        """Load weights and find the cases.

        Raises:
            RunError: weights are missing or changed.
            TaskError: the task's data or a case are absent.
        """
        self.config: Config = run_folder.read_config(run_dir)
        torch.set_num_threads(self.config.train.num_threads)
        self.weights = run_folder.read_status(run_dir)["files"]["weights.safetensors"]
        self.predictor = Predictor(load_run(run_dir), self.config)
        self.network = self.predictor.network
        data = open_task(self.config.task, data_dir)
        self.store = CaseStore(data, tuple(cases), self.config.data)

    @torch.inference_mode()
    def stages(self, index: int) -> tuple[dict[str, Tensor], dict[str, Map]]:
        """A case's stages under the tables' names, and each one's activation map on the network's
        grid."""
        image, _ = self.store.get(index)
        found = self.predictor.stages(image[None])
        kept = {STAGES[name]: tensor for name, tensor in found.items() if name in STAGES}
        grid, size = token_grid(self.network, kept), image.shape[1:]
        return kept, {
            name: on_grid(activation_map(as_features(tensor, grid)), size)
            for name, tensor in kept.items()
        }

    def label(self, index: int) -> Mask:
        """Foreground on the network's grid."""
        return self.store.get(index)[1][0].numpy() > 0

    def rows(self, index: int) -> list[dict[str, Any]]:
        """One row per stage of one case."""
        stages, maps = self.stages(index)
        label, config = self.label(index), self.config
        who = run_columns(config) | {"case": self.store.case_ids[index]}
        last = {"label_share": rounded(label.mean()), "weights": self.weights[:12]}
        return [
            who | {"stage": name} | numbers(as_matrix(tensor), maps[name], label) | last
            for name, tensor in stages.items()
        ]

    @torch.inference_mode()
    def seven(self, index: int) -> dict[str, Map]:
        """Maps of one case under the names of the figure's columns; those that the network has not
        are left out."""
        image, _ = self.store.get(index)
        _, maps = self.stages(index)
        names = {
            "encoder": "encoder",
            "bottleneck": "encoder",
            "mapper1": "mapper1",
            "mapper2": "mapper2",
            "decoder": "decoder",
        }
        out = {column: maps[stage] for stage, column in names.items() if stage in maps}
        if (received := attention_received(self.network, image, self.predictor)) is not None:
            out["attention"] = on_grid(received, image.shape[1:])
        probabilities = predict_probabilities(self.predictor, image[None])[0].cpu()
        found = probabilities[0] if len(probabilities) == 1 else 1 - probabilities[0]
        return out | {"output": found.numpy()}


def numbers(tokens: Matrix, values: Map, label: Mask) -> dict[str, Any]:
    """The measures of one stage of one case."""
    shares = singular_shares(tokens)
    up, best = activation_iou(values, label)
    centred = effective_rank(singular_shares(tokens - tokens.mean(dim=0)))
    found = {
        "effective_rank": effective_rank(shares),
        "effective_rank_centred": centred,
        "lsvr": lsvr(shares),
        "activation_iou": up,
        "activation_iou_best": best,
        "entropy": entropy(values),
    }
    return {"tokens": tokens.shape[0], "width": tokens.shape[1]} | {
        name: rounded(value) for name, value in found.items()
    }


def rounded(value: float | np.floating[Any]) -> float:
    """Six significant digits, so that the last bits of another processor do not show."""
    return float(f"{float(value):.6g}")


@torch.inference_mode()
def attention_received(
    network: nn.Module, image: Float[Tensor, " C *spatial"], predict: Predictor | None = None
) -> Float[Tensor, "*cells"] | None:
    """Attention that each token of the last ViT block gets, mean over heads and queries, times the
    number of tokens: 1 is an even share.

    None for a network without a ViT.
    """
    vit = getattr(network, "vit", network)
    if not isinstance(vit, ViTBaseline):
        return None
    block: Any = [*vit.encoder, *vit.decoder][-1]
    seen: list[Tensor] = []
    hook = block.norm1.register_forward_hook(lambda module, given, out: seen.append(out))
    (predict or network)(image[None])
    hook.remove()
    _, length, width = seen[0].shape
    query, key, _ = (
        block.qkv(seen[0].float()).view(length, 3, block.num_heads, -1).permute(1, 2, 0, 3)
    )
    weights = torch.softmax(
        query @ key.transpose(1, 2) / math.sqrt(width // block.num_heads), dim=-1
    )
    return (
        weights.mean(dim=(0, 1))
        .cpu()
        .reshape([s // p for s, p in zip(vit.img_size, vit.patch_size)])
        * length
    )


def measure(run_dir: Path, data_dir: Path | None, cases: Sequence[str]) -> list[dict[str, Any]]:
    """One row per case and stage of a finished run.

    Raises:
        RunError: weights are missing or changed.
        TaskError: the task's data or a case are absent.
    """
    run = Measured(run_dir, data_dir, cases)
    return [row for index in range(len(cases)) for row in run.rows(index)]


def maps(
    run_dir: Path, data_dir: Path | None, case: str
) -> tuple[dict[str, Map], dict[str, dict[str, Any]], int]:
    """Slices of one case's maps by column, as figures show them (the axial slice that holds most of
    the label; a picture whole), each stage's measures over the whole case, and the slice's index.
    """
    run = Measured(run_dir, data_dir, [case])
    z = best_slice(run.label(0))
    rows = {row["stage"]: {name: row[name] for name in MEASURES} for row in run.rows(0)}
    return (
        {name: view(values, z, run.config.task, data_dir) for name, values in run.seven(0).items()},
        rows,
        z,
    )
