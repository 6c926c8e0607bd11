"""Roughness: a ball is 1, a jagged mask is more, and rows are bound to the weights that made the
masks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mvl.core import columns, files, run_folder
from mvl.datasets import task
from mvl.evidence import mask_roughness, stats
from mvl.evidence.chapter import Chapter


def ball(radius: float, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> np.ndarray:
    half = [int(radius / s) + 2 for s in spacing]
    grids = np.meshgrid(*(np.arange(-h, h + 1) * s for h, s in zip(half, spacing)), indexing="ij")
    return sum(g**2 for g in grids) <= radius**2


def test_a_ball_is_nearly_one_whatever_its_size_and_spacing() -> None:
    for radius, spacing in (
        (6.0, (1.0, 1.0, 1.0)),
        (12.0, (1.0, 1.0, 1.0)),
        (12.0, (1.0, 1.5, 1.0)),
    ):
        mask = ball(radius, spacing)
        found = mask_roughness.mask_measures(mask, mask, spacing)
        assert (
            found["disproportion"] == pytest.approx(1.0, abs=0.12)
            and found["roughness"] == 1.0
            and found["components"] == 1
        )
        assert found["volume_mm3"] == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.05)
    assert mask_roughness.disproportion(4 / 3 * np.pi, 4 * np.pi) == pytest.approx(1.0)


def test_surface_is_in_mm_and_also_counted_at_the_border_of_the_grid() -> None:
    cube = np.ones((10, 10, 10), dtype=bool)
    found = mask_roughness.mask_measures(cube, cube, (1.0, 1.0, 2.0))
    assert found["volume_mm3"] == 2000
    assert found["surface_mm2"] == pytest.approx(2 * 100 + 4 * 200, rel=0.12)


def test_a_jagged_mask_is_rougher_and_pieces_are_counted() -> None:
    smooth = ball(8.0)
    jagged = smooth & (np.indices(smooth.shape).sum(axis=0) % 4 > 0)
    found = mask_roughness.mask_measures(jagged, smooth, (1.0, 1.0, 1.0))
    assert found["roughness"] > 1.3
    two = np.zeros((12, 12, 12), dtype=bool)
    two[1:4, 1:4, 1:4] = two[4:6, 4:6, 4:6] = two[9:11, 9:11, 9:11] = True
    assert (
        mask_roughness.mask_measures(two, smooth[:12, :12, :12], (1.0, 1.0, 1.0))["components"] == 2
    ), "a shared corner joins"


def test_an_empty_mask_has_no_roughness() -> None:
    label = ball(3.0)
    found = mask_roughness.mask_measures(np.zeros_like(label), label, (1.0, 1.0, 1.0))
    assert (
        found["components"] == 0
        and np.isnan(found["roughness"])
        and found["label_disproportion"] > 0.9
    )


def chapter(folder: Path, folds: tuple[int, ...] = (0, 1)) -> Chapter:
    """Two arms at each fold, their weights a few bytes."""
    rows = []
    for system in ("vit_baseline", "medvisionllama_v3"):
        for fold in folds:
            run = f"s/runs/{system}-{fold}"
            files.atomic_write(folder / run / "weights.safetensors", f"{system}{fold}")
            rows.append(
                {
                    "study": "s",
                    "task": "phantoms",
                    "system": system,
                    "fraction": 1.0,
                    "fold": fold,
                    "seed": 0,
                    "state": "done",
                    "run": run,
                    "weights_sha256": files.sha256_bytes(f"{system}{fold}".encode()),
                }
            )
    cases = [
        {k: row[k] for k in columns.RUN_KEYS}
        | {"case": f"c{row['fold']}{i}", "dice": 0.5, "label": "foreground"}
        for row in rows
        for i in range(3)
    ]
    return Chapter(
        "qualitative",
        "quick",
        folder,
        pd.DataFrame(rows, columns=[*columns.RUN_KEYS, "state", "run", "weights_sha256"]),
        pd.DataFrame(cases),
        pd.DataFrame(),
        (),
    )


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs that were asked for masks; the ViT's are jagged."""
    seen: list[str] = []
    smooth = ball(5.0)

    def predict(
        folder: Path, cases: list[str], data_dir: Path | None = None
    ) -> dict[str, np.ndarray]:
        seen.append(folder.name)
        holes = [np.random.default_rng(i).random(smooth.shape) > 0.1 for i in range(len(cases))]
        return {
            case: smooth & hole if "vit" in folder.name else smooth
            for case, hole in zip(cases, holes)
        }

    monkeypatch.setattr(mask_roughness, "predicted_masks", predict)
    monkeypatch.setattr(mask_roughness, "read_volume", lambda *_: (smooth * 1.0, smooth, np.eye(4)))
    return seen


def test_rows_are_measured_once_and_bound_to_their_weights(
    tmp_path: Path, asked: list[str]
) -> None:
    first = chapter(tmp_path)
    table, holes = mask_roughness.load_masks(first)
    assert (
        list(table.columns) == mask_roughness.COLUMNS
        and len(table) == 6
        and asked == ["vit_baseline-0", "medvisionllama_v3-0"]
    )
    assert [hole for hole in holes if "1 of its runs" in hole] == holes and len(holes) == 2, (
        "fold 1 is not measured unless asked for"
    )
    again, _ = mask_roughness.load_masks(first)
    assert asked == ["vit_baseline-0", "medvisionllama_v3-0"]
    pd.testing.assert_frame_equal(table, again, check_dtype=False)
    assert len(mask_roughness.load_masks(first, folds=(0, 1))[0]) == 12 and len(asked) == 4
    other = first.runs.assign(weights_sha256="0" * 64)
    assert mask_roughness.load_masks(replace(first, runs=other))[0].empty


def test_published_records_take_rows_only_when_told(
    tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = chapter(tmp_path / "runs")
    monkeypatch.setattr(run_folder, "records_dir", lambda: tmp_path / "results")
    published = replace(made, results_dir=tmp_path / "results")
    assert mask_roughness.load_masks(published, home=tmp_path / "runs")[0].empty and asked == []
    assert (
        len(mask_roughness.load_masks(published, home=tmp_path / "runs", folds=(0,))[0]) == 6
        and not (tmp_path / "results").exists()
    )
    path = mask_roughness.save_masks(published, home=tmp_path / "runs", folds=(0, 1))
    assert (
        path == tmp_path / "results" / "quick" / "masks.csv"
        and len(mask_roughness.read_masks(path)) == 12
    )
    assert (
        mask_roughness.save_masks(published, home=tmp_path / "runs") == path
        and len(mask_roughness.read_masks(path)) == 12
    )
    assert len(mask_roughness.load_masks(published)[0]) == 12, "read without weights"


def test_the_table_pairs_arms_and_names_what_is_missing(tmp_path: Path, asked: list[str]) -> None:
    table, holes = mask_roughness.load_masks(chapter(tmp_path), folds=(0, 1))
    text = mask_roughness.roughness_table(table, holes)
    assert (
        "hantom" in text
        and "| MedVisionLlama v3 | 2 | 6 | 1.000 | 1.00 | -" in text
        and "| 2 |" in text
    )
    found = stats.compare(table, "medvisionllama_v3", "vit_baseline", "phantoms", 1.0, "roughness")
    assert found.interval.difference < 0 and f"{found.interval.difference:+z.3f}" in text
    one = mask_roughness.roughness_table(
        table[table["fold"] == 0], ["roughness of x: 1 of its runs"]
    )
    assert "over cases alone" in one and "Not yet recorded: roughness of x" in one
    assert (
        mask_roughness.roughness_table(table.iloc[:0], ["nothing"]) == "Not yet recorded: nothing."
    )


def test_missing_weights_and_scans_are_holes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "default_results_dir", lambda: tmp_path / "own")
    made = chapter(tmp_path / "runs", folds=(0,))
    table, holes = mask_roughness.load_masks(replace(made, results_dir=tmp_path / "none"))
    assert (
        table.empty and "python -m mvl.evidence.example_masks quick" in holes[0] and len(holes) == 2
    )

    def absent(*_: object) -> None:
        raise task.TaskError("no data; `mvl fetch`")

    monkeypatch.setattr(mask_roughness, "predicted_masks", absent)
    table, holes = mask_roughness.load_masks(made)
    assert table.empty and holes == ["roughness needs the scans: no data; `mvl fetch`"]
