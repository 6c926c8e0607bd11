"""Metrics against golden tables, MONAI's own functions and a second implementation; the rule for
empty masks; rows of a store."""

from __future__ import annotations

import dataclasses
import math
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from scipy import ndimage
from torch import nn

from mvl.core.columns import CASE_COLUMNS
from mvl.core.config import Config, DataConfig
from mvl.core.means import MetricError
from mvl.datasets.case_store import CaseStore, NativeCase
from mvl.datasets.registry import find_task
from mvl.datasets.shapes2d import ensure_shapes
from mvl.datasets.task_data import TaskData
from mvl.training import evaluate, metrics
from mvl.training.evaluate import evaluate_store
from mvl.training.metrics import case_metrics, class_masks
from mvl.training.surface import decathlon_metrics
from mvl.training.trained import Predictor

SCORES = ("dice", "jaccard", "sensitivity", "specificity", "nsd", "hd95_mm")


def box(shape: tuple[int, ...], *ranges: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in ranges)] = True
    return mask


def blob(seed: int, shape: tuple[int, ...] = (14, 17, 11)) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.6)
    return noise > np.quantile(noise, 0.8)


def second_opinion(
    prediction: np.ndarray, label: np.ndarray, spacing: tuple[float, ...], tolerance: float
) -> tuple[float, float]:
    """NSD and HD95 on the whole grid: edges by comparing shifted copies, distances by a distance
    transform, percentile by sorting."""

    def edge(mask: np.ndarray) -> np.ndarray:
        padded, inner = np.pad(mask, 1), mask.copy()
        for axis in range(mask.ndim):
            for step in (-1, 1):
                inner &= np.roll(padded, step, axis)[(slice(1, -1),) * mask.ndim]
        return mask & ~inner

    def percentile(values: np.ndarray) -> float:
        place = 0.95 * (len(values) - 1)
        low, values = int(place), np.sort(values)
        return values[low] + (place - low) * (values[min(low + 1, len(values) - 1)] - values[low])

    edges = edge(prediction), edge(label)
    ways = [
        ndimage.distance_transform_edt(~b, sampling=spacing)[a] for a, b in (edges, edges[::-1])
    ]
    close = sum((way <= tolerance + 1e-6).sum() for way in ways)
    return close / sum(map(len, ways)), max(map(percentile, ways))


EMPTY, FULL = np.zeros((3, 4, 12), bool), box((3, 4, 12), (1, 2), (1, 3), (2, 5))
DIAGONAL = math.sqrt(3.0**2 + 8.0**2 + 6.0**2)


@pytest.mark.parametrize(
    ("prediction", "label", "golden"),
    [
        (EMPTY, EMPTY, ("true_negative", 1, 1, 1, 1, 1, 0)),
        (EMPTY, FULL, ("missed", 0, 0, 0, 1, 0, DIAGONAL)),
        (FULL, EMPTY, ("false_positive", 0, 0, 0, 138 / 144, 0, DIAGONAL)),
        (FULL, FULL, ("ok", 1, 1, 1, 1, 1, 0)),
    ],
)
def test_rule_for_empty_masks(prediction: np.ndarray, label: np.ndarray, golden: tuple) -> None:
    row = case_metrics(prediction, label, (1.0, 2.0, 0.5), 1.0)
    assert row["status"] == golden[0]
    assert [row[name] for name in SCORES] == pytest.approx(golden[1:], abs=1e-12)
    assert (row["voxels_prediction"], row["voxels_label"]) == (prediction.sum(), label.sum())


def test_label_that_fills_the_grid_has_specificity_one() -> None:
    assert case_metrics(~EMPTY, ~EMPTY, (1.0, 1.0, 1.0), 0.0)["specificity"] == 1
    assert case_metrics(EMPTY, ~EMPTY, (1.0, 1.0, 1.0), 0.0)["specificity"] == 1


def test_counts_by_hand() -> None:
    """Two 2x2x4 blocks that share half: TP 8, FP 8, FN 8 of 512 voxels."""
    label, prediction = (
        box((8, 8, 8), (2, 4), (2, 4), (2, 6)),
        box((8, 8, 8), (2, 4), (2, 4), (4, 8)),
    )
    row = case_metrics(prediction, label, (1.0, 1.0, 1.0), 1.0)
    assert [row[n] for n in SCORES[:4]] == pytest.approx([0.5, 1 / 3, 0.5, 488 / 496], abs=1e-12)


@pytest.mark.parametrize(
    ("spacing", "hd95", "nsd"),
    [((3.0, 1.0, 1.0), 6.0, 0.0), ((1.0, 1.0, 3.0), 2.0, 1.0), ((1.0, 1.0, 1.0), 2.0, 1.0)],
)
def test_spacing_scales_its_own_axis(spacing: tuple[float, ...], hd95: float, nsd: float) -> None:
    """A one-voxel-thick plate moved by two voxels along the first axis: every distance is twice
    that axis' spacing."""
    label, prediction = (
        box((8, 8, 8), (2, 3), (1, 7), (1, 7)),
        box((8, 8, 8), (4, 5), (1, 7), (1, 7)),
    )
    row = case_metrics(prediction, label, spacing, 2.0)
    assert (row["hd95_mm"], row["nsd"]) == (hd95, nsd)


def test_tolerance_counts_distances_that_equal_it() -> None:
    """0.3 mm of spacing 0.1 must not be lost to rounding."""
    label, prediction = (
        box((8, 8, 8), (2, 3), (1, 7), (1, 7)),
        box((8, 8, 8), (5, 6), (1, 7), (1, 7)),
    )
    assert case_metrics(prediction, label, (0.1, 0.1, 0.1), 0.3)["nsd"] == 1
    assert case_metrics(prediction, label, (0.1, 0.1, 0.1), 0.29)["nsd"] == 0


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("limit", [0, 100_000])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.9, 2.5)])
def test_agrees_with_monai_and_a_second_implementation(
    seed: int, limit: int, spacing: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways to the distances (limit 0 takes the distance transform) give MONAI's numbers and
    those of code that shares nothing."""
    monkeypatch.setattr("mvl.training.edges.MAX_TREE_EDGES", limit)
    prediction, label = blob(seed), blob(seed + 100)
    row = case_metrics(prediction, label, spacing, 1.5)
    masks = torch.from_numpy(prediction)[None, None], torch.from_numpy(label)[None, None]
    nsd = compute_surface_dice(*masks, [1.5], include_background=True, spacing=list(spacing))
    hd95 = compute_hausdorff_distance(
        *masks, include_background=True, percentile=95, spacing=list(spacing)
    )
    assert (row["nsd"], row["hd95_mm"]) == pytest.approx((float(nsd), float(hd95)), abs=1e-5)
    assert (row["nsd"], row["hd95_mm"]) == pytest.approx(
        second_opinion(prediction, label, spacing, 1.5), abs=1e-5
    )
    both = (prediction & label).sum()
    assert row["dice"] == pytest.approx(2 * both / (prediction.sum() + label.sum()), abs=1e-12)


@pytest.mark.parametrize("touch", [False, True])
def test_cropping_changes_nothing(touch: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits with the whole grid instead of the joint box, also where masks touch the
    border."""
    prediction, label = np.zeros((30, 40, 50), bool), np.zeros((30, 40, 50), bool)
    corner = (0, 0, 0) if touch else (9, 14, 22)
    window = tuple(slice(c, c + n) for c, n in zip(corner, (14, 17, 11)))
    prediction[window], label[window] = blob(1), blob(2)
    cropped = case_metrics(prediction, label, (1.0, 1.2, 0.8), 1.0)
    monkeypatch.setattr(metrics, "joint_box", lambda *_: (slice(None),) * 3)
    assert case_metrics(prediction, label, (1.0, 1.2, 0.8), 1.0) == cropped


def test_two_dimensions() -> None:
    prediction, label = blob(3, (40, 50)), blob(4, (40, 50))
    row = case_metrics(prediction, label, (0.5, 2.0), 1.0)
    assert (row["nsd"], row["hd95_mm"]) == pytest.approx(
        second_opinion(prediction, label, (0.5, 2.0), 1.0), abs=1e-5
    )


SHAPES = "must have one shape, 2-D or 3-D, without empty axes"
NOT_BOOL = "not bool: threshold or compare it first (soft or integer masks score wrongly)"
SPACING = "must give one voxel size per axis of (3, 4, 12); read it from the label's affine"


def with_shape(*shape: int) -> dict[str, np.ndarray]:
    """Both masks empty and of one shape."""
    return dict.fromkeys(("prediction", "label"), np.zeros(shape, bool))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction": FULL.astype(np.float32)}, f"prediction is float32, {NOT_BOOL}"),
        ({"label": FULL.astype(np.uint8)}, f"label is uint8, {NOT_BOOL}"),
        ({"prediction": FULL[:2]}, f"prediction (2, 4, 12) and label (3, 4, 12) {SHAPES}"),
        (with_shape(3), f"prediction (3,) and label (3,) {SHAPES}"),
        (with_shape(1, 2, 3, 4), f"prediction (1, 2, 3, 4) and label (1, 2, 3, 4) {SHAPES}"),
        (with_shape(3, 0), f"prediction (3, 0) and label (3, 0) {SHAPES}"),
        ({"spacing_mm": None}, f"spacing_mm None {SPACING}"),
        ({"spacing_mm": (1.0, 1.0)}, f"spacing_mm (1.0, 1.0) {SPACING}"),
        ({"spacing_mm": (1.0, 0.0, 1.0)}, "spacing_mm [1.0, 0.0, 1.0] must be positive and finite"),
        (
            {"spacing_mm": (1.0, 1.0, math.inf)},
            "spacing_mm [1.0, 1.0, inf] must be positive and finite",
        ),
        (
            {"spacing_mm": (1.0, math.nan, 1.0)},
            "spacing_mm [1.0, nan, 1.0] must be positive and finite",
        ),
        ({"tolerance_mm": -1.0}, "tolerance_mm -1.0 must be finite and not negative"),
        ({"tolerance_mm": math.nan}, "tolerance_mm nan must be finite and not negative"),
        ({"tolerance_mm": math.inf}, "tolerance_mm inf must be finite and not negative"),
    ],
)
def test_refuses_what_it_cannot_score(change: dict, message: str) -> None:
    arguments = {
        "prediction": FULL,
        "label": FULL,
        "spacing_mm": (1.0, 1.0, 1.0),
        "tolerance_mm": 1.0,
    }
    with pytest.raises(MetricError) as caught:
        case_metrics(**(arguments | change))
    assert str(caught.value) == message


@pytest.mark.parametrize("shape", [(3, 4, 12), (5, 7)])
def test_a_row_holds_every_measure_and_what_it_was_measured_with(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    prediction, label = rng.random(shape) < 0.3, rng.random(shape) < 0.5
    spacing = [0.7, 1.1, 2.0][: len(shape)]
    row = case_metrics(prediction, label, np.array(spacing), 1.0)
    tp, fp, fn = (
        (prediction & label).sum(),
        (prediction & ~label).sum(),
        (~prediction & label).sum(),
    )
    tn = label.size - tp - fp - fn
    nsd, hd95 = second_opinion(prediction, label, tuple(spacing), 1.0)
    wanted = {
        "dice": 2 * tp / (2 * tp + fp + fn),
        "jaccard": tp / (tp + fp + fn),
        "sensitivity": tp / (tp + fn),
        "specificity": tn / (tn + fp),
        "nsd": nsd,
        "hd95_mm": hd95,
        **decathlon_metrics(prediction, label, spacing, 1.0),
        "nsd_tolerance_mm": 1.0,
        "voxels_label": tp + fn,
        "voxels_prediction": tp + fp,
    }
    assert row.pop("status") == "ok"
    assert row == pytest.approx(wanted, abs=1e-5) and set(row) == set(wanted)
    assert metrics.dice(prediction, label) == pytest.approx(wanted["dice"], abs=1e-12)
    assert metrics.confusion(prediction, label) == [tp, fp, tn, fn]


def test_dice_of_empty_masks_and_of_what_is_no_mask() -> None:
    for pair, wanted in (((EMPTY, EMPTY), 1), ((FULL, EMPTY), 0), ((EMPTY, FULL), 0)):
        assert metrics.dice(*pair) == wanted
    for pair, found in (
        ((FULL, FULL[:2]), "bool (3, 4, 12) and bool (2, 4, 12)"),
        ((FULL * 1.0, FULL), "float64 (3, 4, 12) and bool (3, 4, 12)"),
        ((FULL, FULL * 1.0), "bool (3, 4, 12) and float64 (3, 4, 12)"),
    ):
        with pytest.raises(MetricError) as caught:
            metrics.dice(*pair)
        assert str(caught.value) == f"dice needs two boolean masks of one shape, got {found}"


def test_label_masks_are_the_values_asked_for_or_the_whole_foreground() -> None:
    masks = metrics.label_masks(np.array([0, 1, 2, 3]), {"front": 1, "all": None, "back": 3})
    assert [mask.tolist() for mask in masks] == [
        [False, True, False, False],
        [False, True, True, True],
        [False, False, False, True],
    ]


def test_class_masks() -> None:
    assert class_masks(np.array([[0.2, 0.5, 0.6]], np.float32))[0].tolist() == [False, False, True]
    several = class_masks(np.array([[0.5, 0.2, 0.1], [0.3, 0.6, 0.1], [0.2, 0.2, 0.8]], np.float32))
    assert [m.tolist() for m in several] == [[False, True, False], [False, False, True]]
    for bad in (np.nan, np.inf):
        with pytest.raises(MetricError) as caught:
            class_masks(np.array([[0.2, bad]], np.float32))
        assert str(caught.value) == (
            "prediction holds values that are not finite; the run has diverged or its weights are"
            " damaged"
        )


def test_cost_of_a_large_case() -> None:
    """128x128x128, also for noise and an all-foreground prediction: at most 2 s of processor time
    and 0.3 GB beside the masks."""
    grid = np.ogrid[:128, :128, :128]
    label = sum((g - 64) ** 2 for g in grid) < 40**2
    shifted = sum((g - c) ** 2 for g, c in zip(grid, (60, 66, 64))) < 42**2
    noise = np.random.default_rng(0).random(label.shape) < 0.5
    for prediction in (
        shifted,
        shifted ^ (noise & np.roll(noise, 1) & np.roll(noise, 2)),
        noise,
        np.ones_like(label),
    ):
        start = time.process_time()
        case_metrics(prediction, label, (1.0, 1.0, 1.0), 2.0)
        assert time.process_time() - start <= 2
    tracemalloc.start()
    case_metrics(noise, label, (1.0, 1.0, 1.0), 2.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 0.3e9


class Threshold(nn.Module):
    """Logits that follow the intensity; dropout shows whether the model is in evaluation mode."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes, self.dropout = classes, nn.Dropout(0.5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        drawn = self.dropout(image)
        return (
            torch.cat([-((drawn - k) ** 2) for k in range(self.classes)], 1) * 20
            if self.classes > 1
            else 20 * (drawn - 0.5)
        )


class Store(CaseStore):
    """Two cases on a grid twice as fine as the network's; case b holds nothing."""

    def __init__(self) -> None:  # no files behind it
        label = np.zeros((16, 16, 16), np.uint8)
        label[4:10, 4:10, 4:8], label[4:10, 4:10, 8:12] = 1, 2
        self.task, self.case_ids = TASK, ("a", "b")
        self.labels = [label, np.zeros_like(label)]

    def get(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        small = torch.from_numpy(self.labels[index][::2, ::2, ::2].copy())[None]
        return small.float(), small

    def native(self, index: int) -> NativeCase:
        return NativeCase(label=self.labels[index], affine=np.eye(4), spacing_mm=(1.0, 1.0, 2.0))

    def to_native(self, index: int, prediction: torch.Tensor) -> torch.Tensor:
        return prediction.repeat_interleave(2, 1).repeat_interleave(2, 2).repeat_interleave(2, 3)


TASK = dataclasses.replace(
    find_task("phantoms"), name="toy", labels={1: "front", 2: "back"}, nsd_tolerance_mm=1.0
)


@pytest.mark.parametrize(
    ("labels", "names", "classes"),
    [("foreground", ["foreground"], 1), ("all", ["front", "back"], 3)],
)
def test_one_row_per_case_and_label(labels: str, names: list[str], classes: int) -> None:
    config = Config(
        study="s",
        task="toy",
        system="y",
        fold=3,
        seed=2,
        data=dataclasses.replace(DataConfig(), labels=labels),
    )
    rows = evaluate_store(Predictor(Threshold(classes).train(), config), Store())
    expected = [("a", n, "ok") for n in names] + [("b", n, "true_negative") for n in names]
    assert [(r["case"], r["label"], r["status"]) for r in rows] == expected
    assert all(list(r) == CASE_COLUMNS for r in rows)
    assert all(r["dice"] == r["dice_resized"] == r["nsd"] == 1 and r["hd95_mm"] == 0 for r in rows)
    keys = ("study", "system", "fraction", "fold", "seed", "nsd_tolerance_mm")
    assert {tuple(r[k] for k in keys) for r in rows} == {("s", "y", 1.0, 3, 2, 1.0)}


def test_refuses_a_model_with_other_classes() -> None:
    config = Config(data=dataclasses.replace(DataConfig(), labels="all"))
    with pytest.raises(MetricError, match="predicts 1 classes"):
        evaluate_store(Predictor(Threshold(2), config), Store())


@pytest.mark.parametrize(
    ("labels", "classes", "names"),
    [("foreground", 1, {"foreground"}), ("all", 3, {"Anterior", "Posterior"})],
)
def test_real_scans_with_the_label_as_prediction(
    labels: str, classes: int, names: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The resized label, taken for the network's output, comes back on the scan's own grid where
    the label lies."""
    task, data = (
        find_task("hippocampus_40"),
        dataclasses.replace(DataConfig(), img_size=(64, 64, 64), labels=labels),
    )
    store = CaseStore(
        TaskData(task), tuple(case.case_id for case in TaskData(task).cases[:2]), data
    )
    small = [store.get(i)[1][0] for i in range(2)]
    truths = [
        torch.stack([x == k for k in range(classes)] if classes > 1 else [x > 0]).float()
        for x in small
    ]
    monkeypatch.setattr(evaluate, "predict_probabilities", lambda model, image: truths.pop(0)[None])
    config = Config(task=task.name, data=data)
    rows = evaluate_store(Predictor(Threshold(classes), config), store)
    assert len(rows) == 2 * len(names)
    assert {row["label"].capitalize() for row in rows} == {name.capitalize() for name in names}
    assert all(
        row["status"] == "ok"
        and row["dice"] > 0.9
        and row["hd95_mm"] <= 1.5
        and row["dice_resized"] == 1
        for row in rows
    )


def test_pictures_are_scored_on_their_own_grid_in_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The resized mask of a picture, taken for the network's output: IoU and F1 per picture, a
    normal picture is a true negative."""
    task, data = find_task("shapes"), dataclasses.replace(DataConfig(), img_size=(64, 64))
    ensure_shapes(tmp_path / "shapes", 10)
    store = CaseStore(TaskData(task, tmp_path), ("shape_000", "shape_009"), data)
    truths = [(store.get(i)[1] > 0).float() for i in range(2)]
    monkeypatch.setattr(evaluate, "predict_probabilities", lambda model, image: truths.pop(0)[None])
    config = Config(task="shapes", data=data)
    rows = evaluate_store(Predictor(Threshold(1), config), store)
    assert [(row["status"], row["nsd_tolerance_mm"]) for row in rows] == [
        ("ok", 2.0),
        ("true_negative", 2.0),
    ]
    ok, normal = rows
    assert (
        0.9 < ok["dice"] < 1
        and ok["jaccard"] == pytest.approx(ok["dice"] / (2 - ok["dice"]))
        and ok["hd95_mm"] < 3
        and ok["nsd"] > 0.95
    )
    assert (
        normal["dice"] == normal["jaccard"] == 1
        and normal["hd95_mm"] == 0
        and normal["voxels_label"] == 0
    )
    assert ok["voxels_label"] == int((store.native(0).label > 0).sum())
