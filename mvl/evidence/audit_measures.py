"""Figures behind the audit's findings, each computed by a function from committed files or by our
own equivalent of what the code does.

No code of the papers is copied or run here. `MEASURES` names what a finding of `data/audit.toml`
may ask for: a sentence with its numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mvl.core.config import ROOT, DataConfig
from mvl.evidence.reported import paper_value, paper_values

MEASURED = ROOT / "data" / "audit.json"
"Surface voxels of scans, written by `mvl audit --measure`."
VERSIONS, TRAIN_SHARE = 3, 0.8
"Released recipe: versions of each case, and the share of them that is trained on."
NON_TEST = 234
"Cases of a fold of the hippocampus that are not tested on."
README_BATCH, README_SIZE = 4, 128
"Cases per step and voxels per axis in README's command."


def copy_share_exact(cases: int, versions: int = VERSIONS, share: float = TRAIN_SHARE) -> float:
    """Probability that a validation item has another version of its case in training: 1 - C(V - 1,
    k - 1) / C(N - 1, k - 1).

    N items in all, V of them for validation, k versions of each case.
    """
    items = versions * cases
    held = items - int(share * items)
    return 1 - math.comb(held - 1, versions - 1) / math.comb(items - 1, versions - 1)


def copy_share_simulated(
    cases: int, splits: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean, lowest and highest share over random splits of validation items that have another
    version of their case in training."""
    rng, case = np.random.default_rng(seed), np.repeat(np.arange(cases), VERSIONS)
    cut, shares = int(TRAIN_SHARE * len(case)), []
    for _ in range(splits):
        order = rng.permutation(case)
        shares.append(float(np.isin(order[cut:], order[:cut]).mean()))
    return float(np.mean(shares)), min(shares), max(shares)


def copy_share() -> str:
    """Share of leaking validation items, exactly and by simulation, at the hippocampus' number of
    cases."""
    mean, low, high = copy_share_simulated(NON_TEST)
    return (
        f"With {NON_TEST} cases, {copy_share_exact(NON_TEST):.1%} of the validation items have"
        f" another version of their case in training; simulated over 1,000 splits: {mean:.1%}"
        f" ({low:.1%} to {high:.1%})."
    )


def duplicates_across(
    groups: list[list[str]], pictures: int, test_share: float = 0.3, splits: int = 1000
) -> tuple[float, float, float]:
    """Mean, lowest and highest share over seeded random splits of test pictures with a near
    duplicate among those trained on."""
    group = np.arange(pictures) + len(groups)
    place = 0
    for number, members in enumerate(groups):
        group[place : place + len(members)], place = number, place + len(members)
    cut, shares = math.ceil(test_share * pictures), []
    for seed in range(splits):
        order = np.random.default_rng(seed).permutation(group)
        shares.append(float(np.isin(order[:cut], order[cut:]).mean()))
    return float(np.mean(shares)), min(shares), max(shares)


def duplicate_share() -> str:
    """Share of BUSI's test pictures with a near duplicate in training under random 70/30 splits."""
    split = json.loads((ROOT / "data" / "splits" / "BUSI.json").read_text())
    pictures = sum(len(block) for block in split["blocks"])
    mean, low, high = duplicates_across(split["groups"], pictures)
    return (
        f"Over 1,000 random 70/30 splits of the {pictures} pictures, {mean:.1%} of the tested"
        f" pictures ({low:.1%} to {high:.1%}) have a near duplicate among those trained on;"
        f" {len(split['groups'])} groups, found by a perceptual hash."
    )


def surface_voxels(mask: np.ndarray, size: int = README_SIZE) -> int:
    """Voxels just outside a mask, 26-neighbourhood, after it is stretched to `size` voxels per
    axis: the surface that the metric takes."""
    import torch
    from torch.nn import functional

    stretched = functional.interpolate(
        torch.from_numpy(mask.astype(np.float32))[None, None],
        size=(size,) * 3,
        mode="nearest-exact",
    )
    return int((functional.max_pool3d(stretched, 3, 1, 1) - stretched).sum())


def measure_surfaces(data_dir: Path | None = None, cases: int = 8) -> Path:
    """Write the surface voxels of the first training labels of the hippocampus, fold 0, to
    `data/audit.json`."""
    from mvl.core.files import write_json
    from mvl.datasets.loaders import CaseStore
    from mvl.datasets.splits import load_split
    from mvl.datasets.task_data import open_task

    data = open_task("Task04_Hippocampus", data_dir)
    chosen = load_split(data, 0, 1.0).train[:cases]
    store = CaseStore(data, chosen, DataConfig())
    counts = {
        case: surface_voxels(store.native(index).label > 0) for index, case in enumerate(chosen)
    }
    write_json(MEASURED, {"task": data.task.name, "size": README_SIZE, "surface_voxels": counts})
    return MEASURED


def distance_bytes(predicted: float | int, true: float | int) -> float | int:
    """Bytes of all distances between two surfaces as float32: 4 M N."""
    return 4 * predicted * true


def surface_bytes() -> str:
    """Memory of the all-pairs distances at README's batch and size, for the hippocampus' surfaces
    and for a prediction of noise."""
    if not MEASURED.is_file():
        return "Not yet measured: `mvl audit --measure`."
    counts = list(json.loads(MEASURED.read_text())["surface_voxels"].values())
    surface, noise = README_BATCH * sum(counts) / len(counts), README_BATCH * README_SIZE**3 / 2
    return (
        f"4 M N bytes. {len(counts)} hippocampus labels have on average"
        f" {sum(counts) / len(counts):,.0f} surface voxels at 128 x 128 x 128. With a prediction"
        f" that is as large, a batch of 4 has M = N = {surface:,.0f}:"
        f" {distance_bytes(surface, surface) / 1e9:.0f} GB. While the prediction is noise (half of"
        f" all voxels), {distance_bytes(noise, surface) / 1e12:.1f} TB."
    )


def dice_gradients(seed: int = 0) -> tuple[bool, float]:
    """Whether the thresholded Dice term knows any weight at all, and the largest slope of Dice of
    probabilities at the same place."""
    import torch

    from mvl.training.objective import BCEDice, ReleasedLoss

    torch.manual_seed(seed)
    logits, label = (
        torch.randn(2, 1, 6, 6, 6, requires_grad=True),
        torch.randint(0, 2, (2, 1, 6, 6, 6)).float(),
    )
    soft = BCEDice()(logits, label) - 0.5 * torch.nn.functional.binary_cross_entropy_with_logits(
        logits, label
    )
    return ReleasedLoss().hard_dice(logits, label).requires_grad, float(
        torch.autograd.grad(soft, logits)[0].abs().max()
    )


def dice_gradient() -> str:
    """What autograd says of our equivalent of the thresholded term."""
    attached, slope = dice_gradients()
    said = (
        "is not connected to any weight: its gradient is zero"
        if not attached
        else "is connected to the weights"
    )
    return (
        f"Our equivalent, by autograd: the thresholded term {said}; Dice of probabilities has a"
        f" slope up to {slope:.1e} at the same place."
    )


def turned_overlap(angles: int = 11) -> tuple[float, float]:
    """Mean and lowest Dice between an ellipsoid turned with its image and the same one turned in
    the other plane, angles of +-5 degrees."""
    import torch

    from mvl.datasets.augment import turn
    from mvl.datasets.resample import resample, sampling_theta

    axes = torch.meshgrid(*(torch.arange(n) - (n - 1) / 2 for n in (40, 56, 40)), indexing="ij")
    inside = torch.stack([(x / r) ** 2 for x, r in zip(axes, (8, 18, 8))]).sum(0) <= 1
    label = inside.to(torch.uint8)[None, None]
    size = tuple(inside.shape)
    found = []
    for degrees in np.linspace(-5, 5, angles):
        angle = math.radians(degrees)
        thetas = [sampling_theta(turn(angle, plane), size)[None] for plane in ((2, 1), (1, 0))]
        right, released = (resample(label.float(), label, theta)[1] > 0 for theta in thetas)
        found.append(2 * int((right & released).sum()) / int(right.sum() + released.sum()))
    return float(np.mean(found)), min(found)


def planes_dice() -> str:
    """How far a rotated label is from its structure, for an ellipsoid about as long as a
    hippocampus."""
    mean, low = turned_overlap()
    return (
        f"An ellipsoid of 16 x 36 x 16 voxels, turned in both ways: Dice {mean:.3f} on average over"
        f" angles up to 5 degrees, {low:.3f} at worst. Longer structures lie further apart."
    )


def grown(side: tuple[int, int, int] = (3, 4, 4), size: int = 64, to: int = 128) -> float:
    """Volume of a box after linear resizing and `> 0`, over the volume that the stretched box
    should have."""
    import torch
    from torch.nn import functional

    box = torch.zeros(1, 1, size, size, size)
    x, y, z = side
    box[:, :, 20 : 20 + x, 20 : 20 + y, 20 : 20 + z] = 1
    after = functional.interpolate(box, size=(to,) * 3, mode="trilinear", align_corners=True) > 0
    return float(after.sum()) / (math.prod(side) * (to / size) ** 3)


def label_growth() -> str:
    """What linear resizing does to a small structure."""
    return (
        "A structure of 3 x 4 x 4 voxels, stretched from 64 to 128 voxels per axis, becomes"
        f" {grown():.1f} times as large as it should."
    )


def odd_fraction() -> str:
    """The baseline at 30 % beside the baseline on all data."""
    part = paper_value("few-shot 30 %", "ViT-Baseline", "val_dice")
    whole = paper_value("average", "ViT-Baseline")
    read = "validation Dice with 30 % of the data, read from the figure"
    return (
        f"ViT-Baseline: {part:.3f} {read}; {whole:.2f} reported with all data:"
        f" {part - whole:+z.3f}."
    )


def odd_examples() -> str:
    """Gains of the examples beside the gain of the means."""
    names = ("MedVisionLlama", "ViT-Baseline")
    shown = {name: paper_values(paper="P1", table="example slice", system=name) for name in names}
    means = {name: paper_value("average", name) for name in names}
    gains = [ours - theirs for ours, theirs in zip(*(shown[name] for name in names))]
    below = sum(value < means[names[0]] for value in shown[names[0]])
    return (
        f"Mean gain of the {len(gains)} examples {np.mean(gains):+z.3f} (largest"
        f" {max(gains):+z.2f}); gain of the means {means[names[0]] - means[names[1]]:+z.2f}."
        f" {below} of {len(gains)} examples of MedVisionLlama lie below its mean."
    )


def control_parameters() -> str:
    """Trained parameters of the released controls beside those of the hybrid."""
    from mvl.models.describe import listed_parameters

    trained = {
        name: listed_parameters(name)[0]
        for name in ("vit_depth_released", "vit_mlp_released", "medvisionllama_v3", "vit_baseline")
    }
    return (
        "Trained parameters, rebuilt at the released widths for a grid of 64x64x64: ViT-Depth"
        f" {trained['vit_depth_released']}, ViT-MLP {trained['vit_mlp_released']}; our hybrid with"
        f" SmolLM2's layer {trained['medvisionllama_v3']}, baseline {trained['vit_baseline']}."
    )


def sees_later_tokens() -> tuple[str, bool]:
    """Version of transformers, and whether the first token of a Llama layer without a mask changes
    when the last one does."""
    import torch
    import transformers
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=16,
        intermediate_size=16,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_hidden_layers=1,
    )
    config._attn_implementation = "sdpa"
    layer, tokens, table = (
        LlamaDecoderLayer(config, 0).eval(),
        torch.randn(1, 6, 16),
        (torch.ones(1, 6, 8), torch.zeros(1, 6, 8)),
    )
    other = tokens.clone()
    other[:, -1] += 1
    with torch.no_grad():
        first, second = (
            torch.as_tensor(out if torch.is_tensor(out) else out[0])
            for out in (layer(hidden_states=x, position_embeddings=table) for x in (tokens, other))
        )
    return transformers.__version__, not torch.equal(first[0, 0], second[0, 0])


def causal_by_default() -> str:
    """What a Llama layer that is given no mask does, in the version installed."""
    version, sees = sees_later_tokens()
    return (
        f"transformers {version}: changing the last token"
        f" {'changes' if sees else 'does not change'} the first one's output. The authors' own"
        " release, 4.46.3, was not run."
    )


def empty_mask_truth() -> str:
    """Share of an empty mask that counts as lesion when truth is what equals the largest value."""
    mask = np.zeros((8, 8), dtype=bool)
    return (
        f"Of an empty mask, {float((mask == mask.max()).mean()):.0%} of the pixels count as lesion."
    )


MEASURES: dict[str, Callable[[], str]] = {
    measure.__name__: measure
    for measure in (
        copy_share,
        duplicate_share,
        surface_bytes,
        dice_gradient,
        planes_dice,
        label_growth,
        odd_fraction,
        odd_examples,
        control_parameters,
        causal_by_default,
        empty_mask_truth,
    )
}
