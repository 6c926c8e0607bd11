"""Overlap and boundary measures of one case, in millimetres; the rule for empty masks is written
here, once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.metrics import compute_confusion_matrix_metric, get_mask_edges

from mvl.core.means import MetricError
from mvl.training.edges import edge_distances, joint_box
from mvl.training.surface import decathlon_metrics

STATUSES = ("ok", "missed", "false_positive", "true_negative")
"""ok: both masks hold voxels; missed: only the label; false_positive: only the prediction;
true_negative: neither."""
OVERLAPS = {
    "dice": "f1_score",
    "jaccard": "threat_score",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
}
"Our name = MONAI's name in compute_confusion_matrix_metric."


def case_metrics(
    prediction: np.ndarray,
    label: np.ndarray,
    spacing_mm: Sequence[float] | np.ndarray | None,
    tolerance_mm: float,
) -> dict[str, Any]:
    """All metrics of one boolean mask against another on the scan's own grid, 2-D or 3-D.

    Let TP, FP, TN, FN count voxels. dice = 2TP / (2TP + FP + FN), jaccard = TP / (TP + FP + FN),
    sensitivity = TP / (TP + FN), specificity = TN / (TN + FP), the last over the whole grid. A
    mask's edge is its voxels that a 6-neighbour (4 in 2-D) erosion removes; outside the grid counts
    as empty. D is the set of Euclidean distances in mm, between voxel centres, from each edge voxel
    of one mask to the nearest edge voxel of the other, taken both ways. nsd = share of D at or
    below tolerance_mm, all edge voxels weighted alike. hd95_mm = the larger of the two directed
    95th percentiles (linear interpolation). These are MONAI's definitions (compute_surface_dice
    with use_subvoxels=False, compute_hausdorff_distance with percentile=95). nsd_decathlon and
    hd95_decathlon_mm weight each piece of surface by its area (see surface.py) and follow the same
    rule for empty masks.

    Empty masks: both empty scores dice = jaccard = sensitivity = nsd = 1 and hd95_mm 0
    (true_negative); one empty scores 0 and hd95_mm = the grid's diagonal, sqrt(sum((voxels *
    spacing)^2)) (missed, false_positive). Specificity always comes from the counts; where the label
    fills the grid nothing can be wrongly marked and it is 1.

    Differs: the released code's NSD uses a one-voxel tolerance on the resized grid and MONAI's
    means drop empty masks as NaN.

    Raises:
        MetricError: masks that are not boolean or differ in shape; no spacing, or not one positive
            finite number per axis; bad tolerance.
    """
    spacing = checked_spacing(prediction, label, spacing_mm, tolerance_mm)
    counts = confusion(prediction, label)
    status = status_of(prediction, label)
    out: dict[str, Any] = {"status": status, **overlaps(counts)}
    if status == "ok":
        out |= boundary_metrics(prediction, label, spacing, tolerance_mm)
        out |= decathlon_metrics(prediction, label, spacing, tolerance_mm)
    else:
        out |= empty_metrics(status, math.hypot(*(n * s for n, s in zip(label.shape, spacing))))
    return {
        **out,
        "nsd_tolerance_mm": float(tolerance_mm),
        "voxels_label": int(counts[0] + counts[3]),
        "voxels_prediction": int(counts[0] + counts[1]),
    }


def checked_spacing(
    prediction: np.ndarray,
    label: np.ndarray,
    spacing_mm: Sequence[float] | np.ndarray | None,
    tolerance_mm: float,
) -> list[float]:
    """The spacing as floats, after checking everything that `case_metrics` is given."""
    for name, mask in (("prediction", prediction), ("label", label)):
        if mask.dtype != np.bool_:
            raise MetricError(
                f"{name} is {mask.dtype}, not bool: threshold or compare it first (soft or integer"
                " masks score wrongly)"
            )
    if prediction.shape != label.shape or label.ndim not in (2, 3) or 0 in label.shape:
        raise MetricError(
            f"prediction {prediction.shape} and label {label.shape} must have one shape, 2-D or"
            " 3-D, without empty axes"
        )
    if spacing_mm is None or len(spacing_mm) != label.ndim:
        raise MetricError(
            f"spacing_mm {spacing_mm} must give one voxel size per axis of {label.shape}; read it"
            " from the label's affine"
        )
    spacing = [float(s) for s in spacing_mm]
    if not all(math.isfinite(s) and s > 0 for s in spacing):
        raise MetricError(f"spacing_mm {spacing} must be positive and finite")
    if not (math.isfinite(tolerance_mm) and tolerance_mm >= 0):
        raise MetricError(f"tolerance_mm {tolerance_mm} must be finite and not negative")
    return spacing


def status_of(prediction: np.ndarray, label: np.ndarray) -> str:
    """Which of `STATUSES` a pair of masks has."""
    predicted, present = bool(prediction.any()), bool(label.any())
    return (
        "ok"
        if predicted and present
        else "missed"
        if present
        else "false_positive"
        if predicted
        else "true_negative"
    )


def confusion(prediction: np.ndarray, label: np.ndarray) -> list[int]:
    """[TP, FP, TN, FN] voxel counts, as Python integers (MONAI's float32 counts are inexact past
    16.7 million voxels)."""
    true_positive = int(np.count_nonzero(prediction & label))
    predicted, present = int(np.count_nonzero(prediction)), int(np.count_nonzero(label))
    return [
        true_positive,
        predicted - true_positive,
        label.size - predicted - present + true_positive,
        present - true_positive,
    ]


def overlaps(counts: list[int]) -> dict[str, float]:
    """Dice, Jaccard, sensitivity and specificity of [TP, FP, TN, FN] in float64; over an empty
    denominator, where nothing can be wrong, 1.

    Only where the label alone is empty does the rule for empty masks differ (sensitivity 0);
    `empty_metrics` writes that over.
    """
    table = torch.tensor([counts], dtype=torch.float64)
    scores = {
        ours: float(compute_confusion_matrix_metric(theirs, table))
        for ours, theirs in OVERLAPS.items()
    }
    return {name: 1.0 if math.isnan(score) else score for name, score in scores.items()}


def empty_metrics(status: str, diagonal_mm: float) -> dict[str, float]:
    """The rule for empty masks (both: 1 and 0 mm; one: 0 and the diagonal), for every metric but
    specificity."""
    score, distance = (1.0, 0.0) if status == "true_negative" else (0.0, diagonal_mm)
    overlap = {"dice": score, "jaccard": score, "sensitivity": score}
    return {
        **overlap,
        "nsd": score,
        "hd95_mm": distance,
        "nsd_decathlon": score,
        "hd95_decathlon_mm": distance,
    }


def boundary_metrics(
    prediction: np.ndarray, label: np.ndarray, spacing: list[float], tolerance_mm: float
) -> dict[str, float]:
    """NSD and HD95 of two masks that both hold voxels, computed in their joint bounding box:
    outside it there is no edge."""
    box = joint_box(prediction, label)
    edges = get_mask_edges(
        np.ascontiguousarray(prediction[box]), np.ascontiguousarray(label[box]), crop=False
    )
    ways = [
        edge_distances(edges[0], edges[1], spacing),
        edge_distances(edges[1], edges[0], spacing),
    ]
    within = sum(int(np.count_nonzero(way <= tolerance_mm)) for way in ways)
    hd95 = max(float(np.quantile(way.astype(np.float64), 0.95)) for way in ways)
    return {"nsd": within / sum(way.size for way in ways), "hd95_mm": hd95}


def dice(prediction: np.ndarray, label: np.ndarray) -> float:
    """Dice of two boolean masks of one shape under the rule for empty masks (both empty 1, one
    empty 0)."""
    if prediction.dtype != np.bool_ or label.dtype != np.bool_ or prediction.shape != label.shape:
        found = f"{prediction.dtype} {prediction.shape} and {label.dtype} {label.shape}"
        raise MetricError(f"dice needs two boolean masks of one shape, got {found}")
    return overlaps(confusion(prediction, label))["dice"]


def class_masks(probabilities: np.ndarray) -> list[np.ndarray]:
    """One boolean mask per foreground class of (K, *S) probabilities: above 0.5 for K = 1, else the
    most probable class 1..K-1.

    Raises:
        MetricError: a probability that is not finite.
    """
    if not np.isfinite(probabilities).all():
        raise MetricError(
            "prediction holds values that are not finite; the run has diverged or its weights are"
            " damaged"
        )
    if len(probabilities) == 1:
        return [probabilities[0] > 0.5]
    winner = probabilities.argmax(0)
    return [winner == k for k in range(1, len(probabilities))]


def label_masks(label: np.ndarray, names: dict[str, int | None]) -> list[np.ndarray]:
    """One boolean mask per name: label > 0 where its value is None, else label == value."""
    return [label > 0 if value is None else label == value for value in names.values()]
