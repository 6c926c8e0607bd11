"""Figures of the audit agree with counting by hand, and our equivalents show the fault that they
stand for."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from mvl.core.config import ROOT
from mvl.datasets import task_data
from mvl.datasets.task_data import open_task
from mvl.evidence import audit_measures


@pytest.mark.parametrize("name", sorted(audit_measures.MEASURES))
def test_every_measure_gives_a_sentence_with_a_number(name: str) -> None:
    said = audit_measures.MEASURES[name]()
    assert said.endswith(".") and any(letter.isdigit() for letter in said)


def test_the_exact_share_of_copies_is_that_of_every_split() -> None:
    """Two cases, three versions each, two of six items held out: all 15 splits counted."""
    items, shares = range(6), []
    for held in itertools.combinations(items, 2):
        trained = {item // 3 for item in items if item not in held}
        shares.append(sum(item // 3 in trained for item in held) / 2)
    assert audit_measures.copy_share_exact(2) == pytest.approx(sum(shares) / len(shares)) == 1
    one = [any(item in rest for item in items) for rest in ({1, 2, 3}, {4, 5})]
    assert all(one) and audit_measures.copy_share_exact(1, versions=3, share=0.0) == 0


def test_simulated_and_exact_shares_agree() -> None:
    mean, low, high = audit_measures.copy_share_simulated(audit_measures.NON_TEST, splits=300)
    assert (
        mean == pytest.approx(audit_measures.copy_share_exact(audit_measures.NON_TEST), abs=0.01)
        and low < mean < high <= 1
    )


def test_duplicates_are_counted_on_the_tested_side() -> None:
    assert audit_measures.duplicates_across([], 100, splits=3) == (0.0, 0.0, 0.0)
    mean, low, high = audit_measures.duplicates_across([["a", "b"]] * 50, 100)
    assert low < mean < high and mean == pytest.approx(70 / 99, abs=0.02)
    assert audit_measures.duplicates_across([[str(k) for k in range(100)]], 100, splits=3) == (
        1.0,
        1.0,
        1.0,
    )


def test_the_surface_is_the_layer_around_a_mask() -> None:
    mask = np.zeros((16, 16, 16), dtype=bool)
    mask[5:9, 5:9, 5:9] = True
    assert audit_measures.surface_voxels(mask, 16) == 6**3 - 4**3
    assert audit_measures.surface_voxels(mask, 32) == 10**3 - 8**3


def test_memory_is_that_of_the_distances(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch

    held = torch.cdist(torch.rand(30, 4), torch.rand(20, 4))
    assert audit_measures.distance_bytes(30, 20) == held.numel() * held.element_size()
    monkeypatch.setattr(audit_measures, "MEASURED", tmp_path / "audit.json")
    assert "Not yet measured" in audit_measures.surface_bytes()
    (tmp_path / "audit.json").write_text(json.dumps({"surface_voxels": {"a": 25_000}}))
    assert "100,000: 40 GB" in audit_measures.surface_bytes()


def test_surfaces_are_those_of_training_cases() -> None:
    from mvl.datasets.splits import read_split, select

    path = ROOT / "data" / "splits" / "Task04_Hippocampus.json"
    counted = json.loads(audit_measures.MEASURED.read_text())["surface_voxels"]
    assert set(counted) <= set(select(read_split(path), 0, 1.0, path).train)


def test_surfaces_are_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(audit_measures, "MEASURED", tmp_path / "audit.json")
    monkeypatch.setattr(task_data, "open_task", lambda *_: open_task("phantoms"))
    found = json.loads(audit_measures.measure_surfaces(cases=2).read_text())
    assert found["task"] == "phantoms" and len(found["surface_voxels"]) == 2


def test_the_thresholded_term_knows_no_weight_and_the_soft_one_does() -> None:
    attached, slope = audit_measures.dice_gradients()
    assert not attached and slope > 1e-5


def test_a_label_turned_in_the_other_plane_leaves_its_structure() -> None:
    mean, low = audit_measures.turned_overlap(5)
    assert 0.85 < low < mean < 1


def test_small_boxes_grow_and_large_ones_hardly() -> None:
    assert audit_measures.grown() > 1.5 and audit_measures.grown((30, 30, 30)) < 1.15


def test_a_layer_without_a_mask_is_causal() -> None:
    assert not audit_measures.sees_later_tokens()[1]


def test_the_odd_numbers_are_those_of_the_file() -> None:
    assert "+0.13" in audit_measures.odd_examples() and "+0.045" in audit_measures.odd_fraction()
