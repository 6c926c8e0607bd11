"""Near duplicates: found under other noise, brightness and size; other pictures are not; BUSI's
groups hold."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mvl.core.config import ROOT
from mvl.datasets.duplicates import (
    correlations,
    distances,
    duplicate_groups,
    hashes,
    joined,
    thumbnail,
)
from mvl.datasets.registry import find_task
from mvl.datasets.shapes2d import make_shape
from mvl.datasets.split_groups import find_groups
from mvl.datasets.task import Case
from mvl.datasets.task_data import MANIFESTS, TaskData, open_task

BUSI = Path(os.environ.get("MVL_DATA", "")) / "Dataset_BUSI_with_GT"


def test_copies_are_grouped_and_other_pictures_are_not(tmp_path):
    first, other = make_shape(0, 3)[0], make_shape(0, 4)[0]
    rng = np.random.default_rng(0)
    variants = {
        "a": first,
        "b": np.clip(first * 1.2 + rng.normal(0, 8, first.shape), 0, 255),
        "d": other,
    }
    paths = {}
    for name, values in variants.items():
        paths[name] = tmp_path / f"{name}.png"
        Image.fromarray(values.astype(np.uint8)).save(paths[name])
    paths["c"] = tmp_path / "c.jpg"
    Image.fromarray(first).resize((61, 70)).save(paths["c"], quality=60)
    assert duplicate_groups(list(paths), list(paths.values())) == [["a", "b", "c"]]


def test_a_proposed_pair_is_dropped_where_the_pictures_do_not_correlate(tmp_path):
    """Two endoscope pictures: one frame with unlike insides gives like hashes."""
    rng = np.random.default_rng(2)
    rows, columns = np.mgrid[:64, :64]
    disc = np.hypot(rows - 32, columns - 32) < 28
    paths = []
    for shift in (0, 0, 9):
        blob = np.hypot(rows - 26 - shift, columns - 26 - shift) < 8
        values = 130.0 * disc + 70.0 * blob + rng.normal(0, 2, disc.shape)
        paths.append(tmp_path / f"{len(paths)}.png")
        Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).save(paths[-1])
    alike = correlations(np.stack([thumbnail(path) for path in paths]))
    least = float(alike[0, 1] + alike[0, 2]) / 2
    assert alike[0, 1] > 0.97 > alike[0, 2] > 0.9
    assert duplicate_groups(list("abc"), paths) == [["a", "b", "c"]]
    assert duplicate_groups(list("abc"), paths, least) == [["a", "b"]]


def test_distance_and_correlation_are_what_they_say():
    few = np.random.default_rng(1).random((3, 64, 64)).astype(np.float32)
    few[2] = 3 * few[0] + 5
    bits, apart, alike = hashes(few), distances(hashes(few)), correlations(few)
    assert (
        bits.shape == (3, 255)
        and apart[0, 1] == np.count_nonzero(bits[0] != bits[1]) > 80
        and apart[0, 2] == 0
    )
    assert alike[0, 2] == pytest.approx(1, abs=1e-4) and alike[0, 1] == pytest.approx(
        np.corrcoef(few[0].ravel(), few[1].ravel())[0, 1], abs=1e-4
    )


def test_groups_join_through_others():
    assert joined(list("abcdef"), [("a", "b"), ("d", "e"), ("b", "f")]) == [
        ["a", "b", "f"],
        ["d", "e"],
    ]


DATA = Path(os.environ.get("MVL_DATA", ""))


@pytest.mark.parametrize("name", ["ISIC2017_256", "PH2_256", "Kvasir_SEG_256"])
def test_committed_groups_of_pictures_follow_from_the_pictures(name):
    """On every group and fifty other cases: the chains that swallowed such sets are gone."""
    if not (DATA / name).is_dir():
        pytest.skip(f"needs {name} under MVL_DATA")
    task = find_task(name)
    groups = json.loads((ROOT / "data" / "splits" / f"{name}.json").read_text())["groups"]
    paths = {case.case_id: case.image for case in TaskData(task).cases}
    named = {case for group in groups for case in group} | set(sorted(paths)[:: len(paths) // 50])
    some = [Case(case, paths[case], paths[case]) for case in sorted(named)]
    assert find_groups(task, some, DATA / name) == groups
    # Without the correlation the hash alone joins others too.
    assert duplicate_groups(sorted(named), [paths[case] for case in sorted(named)]) != groups


@pytest.mark.skipif(not BUSI.is_dir(), reason="needs BUSI under MVL_DATA")
def test_committed_groups_of_busi_follow_from_its_pictures():
    groups = json.loads((MANIFESTS / "BUSI.json").read_text())["groups"]
    paths = {case.case_id: case.image for case in open_task("BUSI").cases}
    named = {case for group in groups[::20] for case in group} | {
        "benign_142",
        "benign_291",
        "benign_009",
        "benign_170",
    }
    assert duplicate_groups(sorted(named), [paths[case] for case in sorted(named)]) == groups[::20]
    assert thumbnail(paths["benign_142"]).shape == (64, 64)
