"""Generated pictures: the same bytes again, the stated share of empty and repeated ones, blobs that
brightness alone does not show."""

from __future__ import annotations

import json

import numpy as np

from mvl.core.config import ROOT
from mvl.datasets.masks import read_case
from mvl.datasets.registry import find_task
from mvl.datasets.shapes2d import ensure_shapes, make_shape
from mvl.datasets.splits import make_split, read_split
from mvl.datasets.task_data import TaskData


def test_pictures_are_a_function_of_seed_and_index(few_shapes, tmp_path):
    root = few_shapes[1]
    manifest = json.loads((root / "shapes" / "manifest.json").read_text())
    assert (
        json.loads((ensure_shapes(tmp_path / "shapes", 16) / "manifest.json").read_text())
        == manifest
        and len(manifest["files"]) == 32
    )
    assert not np.array_equal(make_shape(1, 0)[0][:80, :80], make_shape(0, 0)[0][:80, :80])
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_the_stated_pictures_are_empty_or_repeated(few_shapes):
    task, root = few_shapes
    pairs = {case.case_id: read_case(case, 1) for case in TaskData(task, root).cases}
    assert [name for name, (_, mask) in pairs.items() if not mask.any()] == ["shape_009"]
    assert np.array_equal(pairs["shape_014"][1], pairs["shape_013"][1]) and not np.array_equal(
        pairs["shape_014"][0], pairs["shape_013"][0]
    )
    shares = [mask.mean() for _, mask in pairs.values() if mask.any()]
    assert min(shares) > 0.01 and max(shares) < 0.25


def test_darkness_alone_does_not_find_the_blob(few_shapes):
    task, root = few_shapes
    best = []
    for case in TaskData(task, root).cases:
        image, mask = read_case(case, 1)
        if mask.any():
            dark = image[0] < np.quantile(image[0], mask.mean())
            best.append(2 * (dark & (mask > 0)).sum() / (dark.sum() + mask.sum()))
    assert np.mean(best) < 0.6


def test_committed_split_keeps_the_repeats_together():
    split = read_split(ROOT / "data" / "splits" / "shapes.json")
    everyone = sorted(case for block in split["blocks"] for case in block)
    assert (
        len(everyone) == find_task("shapes").num_cases
        and make_split("shapes", everyone, groups=split["groups"]) == split
    )
    assert split["groups"] == [[f"shape_{k:03d}", f"shape_{k + 1:03d}"] for k in (13, 28, 43, 58)]
