"""Group M: no case, run or comparison drops out of a number, and every number says what it
counts."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice

from mvl.core import files, run_folder
from mvl.core.config import CONFIG_DIR, Config, ConfigError, load_config
from mvl.core.means import MetricError, mean
from mvl.evidence import calibration, run_pairs, stats
from mvl.evidence.run_pairs import StatsError
from mvl.publish import readme
from mvl.study import tables, tuning
from mvl.study.tables import TableError
from mvl.training.metrics import case_metrics, class_masks
from tests.evidence.made_pairs import pairs_of
from tests.faults.figures import record_figure
from tests.finished_run import write_run

ROWS = [f"M{k}" for k in range(1, 12)]
NOT_HERE: dict[str, str] = {}
HERE = {f"M{k}" for k in range(1, 12)}
SHAPE, SPACING = (16, 16, 16), (3.0, 1.0, 1.0)
NOTHING = np.zeros(SHAPE, bool)
DIAGONAL = math.hypot(*(n * s for n, s in zip(SHAPE, SPACING)))


def box(*ranges: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(a, b) for a, b in ranges)] = True
    return mask


ORGAN, MOVED = box((4, 8), (4, 9), (5, 12)), box((6, 10), (4, 9), (5, 12))
EMPTY = {
    "both empty": (
        NOTHING,
        NOTHING,
        {"dice": 1, "nsd": 1, "hd95_mm": 0, "status": "true_negative"},
    ),
    "prediction empty": (
        NOTHING,
        ORGAN,
        {"dice": 0, "nsd": 0, "hd95_mm": DIAGONAL, "status": "missed"},
    ),
    "label empty": (
        ORGAN,
        NOTHING,
        {"dice": 0, "nsd": 0, "hd95_mm": DIAGONAL, "status": "false_positive"},
    ),
}


def test_every_row_is_here() -> None:
    assert HERE | set(NOT_HERE) == set(ROWS)


@pytest.mark.parametrize("row", ["M1"])
def test_empty_masks_have_fixed_values(row: str) -> None:
    for prediction, label, golden in EMPTY.values():
        found = case_metrics(prediction, label, SPACING, 1.0)
        assert found["status"] == golden["status"]
        assert [found[key] for key in ("dice", "nsd", "hd95_mm")] == pytest.approx(
            [golden[key] for key in ("dice", "nsd", "hd95_mm")]
        )


@pytest.mark.parametrize(
    ("row", "values"),
    [("M2-nan", [0.5, math.nan]), ("M2-infinite", [0.5, math.inf]), ("M2-none", [])],
)
def test_a_mean_leaves_nothing_out(row: str, values: list[float]) -> None:
    with pytest.raises(MetricError, match="cannot average"):
        mean(values)


@pytest.mark.parametrize("row", ["M3"])
def test_spacing_is_asked_for_and_belongs_to_its_axis(row: str) -> None:
    with pytest.raises(MetricError, match="affine"):
        case_metrics(MOVED, ORGAN, None, 1.0)
    assert (
        case_metrics(MOVED, ORGAN, (3.0, 1.0, 1.0), 2.0)["hd95_mm"] == 6
        and case_metrics(MOVED, ORGAN, (1.0, 1.0, 3.0), 2.0)["hd95_mm"] == 2
    )


@pytest.mark.parametrize(
    ("row", "prediction", "message"),
    [
        ("M4-soft", ORGAN * 0.4, "prediction is float64, not bool: threshold"),
        ("M4-nan", ORGAN * np.nan, "not bool"),
        ("M4-classes", ORGAN.astype(np.uint8) * 3, "prediction is uint8, not bool"),
        ("M4-shape", ORGAN[:1], "one shape"),
    ],
)
def test_only_masks_are_scored(row: str, prediction: np.ndarray, message: str) -> None:
    with pytest.raises(MetricError, match=message):
        case_metrics(prediction, ORGAN, SPACING, 1.0)


@pytest.mark.parametrize("row", ["M4-probabilities"])
def test_probabilities_that_are_not_finite_make_no_mask(row: str) -> None:
    with pytest.raises(MetricError, match="not finite"):
        class_masks(np.array([[0.2, np.nan]], np.float32))


def golden_cells() -> list[tuple[bool, str]]:
    """Each cell of the golden table, agreed or not: empty masks by rule, whole ones and spacings by
    MONAI, NaN refused."""
    cells = [
        (found[key] == pytest.approx(golden[key], abs=1e-6), f"{name} {key}")
        for name, (p, g, golden) in EMPTY.items()
        for found in [case_metrics(p, g, SPACING, 1.0)]
        for key in ("dice", "nsd", "hd95_mm")
    ]
    for spacing, (p, g) in itertools.product(
        [(1.0, 1.0, 1.0), (3.0, 1.0, 1.0), (0.7, 0.9, 2.5)],
        [(ORGAN, ORGAN), (MOVED, ORGAN), (ORGAN, MOVED)],
    ):
        masks = [torch.from_numpy(mask)[None, None] for mask in (p, g)]
        wanted = {
            "dice": 2 * (p & g).sum() / (p.sum() + g.sum()),
            "nsd": float(
                compute_surface_dice(*masks, [1.5], include_background=True, spacing=list(spacing))
            ),
            "hd95_mm": float(
                compute_hausdorff_distance(
                    *masks, include_background=True, percentile=95, spacing=list(spacing)
                )
            ),
        }
        found = case_metrics(p, g, spacing, 1.5)
        cells += [
            (
                found[key] == pytest.approx(value, abs=1e-6 if key == "dice" else 1e-5),
                f"{spacing} {key}",
            )
            for key, value in wanted.items()
        ]
    for bad in (ORGAN * np.nan, ORGAN * 0.4):
        try:
            case_metrics(bad, ORGAN, SPACING, 1.0)
            cells.append((False, "not a mask"))
        except MetricError:
            cells.append((True, "not a mask"))
    return cells


@pytest.mark.parametrize("row", ["M5"])
def test_metrics_agree_with_the_golden_table(row: str) -> None:
    assert [name for ok, name in golden_cells() if not ok] == []


@pytest.mark.faults
def test_cells_of_the_golden_table_are_counted() -> None:
    cells = golden_cells()
    record_figure(
        "metric_table",
        sum(ok for ok, _ in cells),
        len(cells),
        "9 empty cells, 27 whole ones against MONAI, 2 that are no masks",
    )
    assert all(ok for ok, _ in cells)


@pytest.fixture
def grid(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    configs = [
        load_config("hippocampus", "Task04_Hippocampus", system, 1.0, 0, seed)
        for system in ("vit_baseline", "medvisionllama_v3")
        for seed in (0, 1)
    ]
    monkeypatch.setattr(tables, "study_runs", lambda name: configs)
    return configs


def made(results: Path, config: Config, dice: float, split: str = "s") -> Path:
    """A finished run of two cases."""
    cases = [{"case": f"case_{k}", "dice": dice} for k in range(2)]
    return write_run(results, config, cases, split_sha256=split)


@pytest.mark.parametrize("row", ["M6"])
def test_a_run_that_is_missing_or_failed_leaves_a_hole_with_its_name(
    row: str, grid: list[Config], tmp_path: Path
) -> None:
    for config in grid[:2]:
        made(tmp_path, config, 0.5)
    files.write_json(
        run_folder.run_dir(tmp_path, grid[2]) / "status.json", {"state": "failed", "error": "x"}
    )
    tables.collect("hippocampus", tmp_path)
    table, holes = tables.summary("hippocampus", tmp_path), tables.holes("hippocampus", tmp_path)
    assert table[["planned", "done"]].to_numpy().tolist() == [[2, 2], [2, 0]]
    assert [hole.rpartition(": ")[2] for hole in holes] == [
        "failed",
        "missing",
    ] and "medvisionllama_v3" in holes[0]


@pytest.mark.parametrize("row", ["M6-duplicate"])
def test_a_case_that_stands_twice_is_refused(row: str, grid: list[Config], tmp_path: Path) -> None:
    made(tmp_path, grid[0], 0.5)
    path = tables.collect("hippocampus", tmp_path) / "cases.csv"
    path.write_text(path.read_text() + path.read_text().splitlines()[1] + "\n")
    with pytest.raises(TableError, match=r"cases.csv: a case stands twice; collect it again"):
        tables.read_cases("hippocampus", tmp_path)


@pytest.mark.parametrize("row", ["M6-split"])
def test_runs_of_different_splits_are_not_put_into_one_table(
    row: str, grid: list[Config], tmp_path: Path
) -> None:
    made(tmp_path, grid[0], 0.5, "1" * 64)
    made(tmp_path, grid[2], 0.5, "2" * 64)
    with pytest.raises(
        TableError,
        match=(
            r"medvisionllama_v3.* and .*vit_baseline.* different splits .*restore"
            r" data/splits/Task04_Hippocampus.json"
        ),
    ):
        tables.collect("hippocampus", tmp_path)


@pytest.mark.parametrize("row", ["M7"])
def test_an_arm_is_the_mean_of_all_its_seeds(row: str, grid: list[Config], tmp_path: Path) -> None:
    for config, dice in zip(grid, (0.5, 0.9, 0.6, 0.6)):
        made(tmp_path, config, dice)
    tables.collect("hippocampus", tmp_path)
    assert tables.summary("hippocampus", tmp_path)["dice"].tolist() == pytest.approx([0.7, 0.6])


def folds(*means: float) -> run_pairs.Pairs:
    """One seed and twenty cases a fold."""
    return pairs_of(*(mean + np.linspace(-0.01, 0.01, 20) for mean in means))


@pytest.mark.parametrize("row", ["M8"])
def test_the_unit_is_the_fold_and_interval_and_effect_come_with_it(row: str) -> None:
    """A shift that each run has of its own: twenty cases do not make it twenty times as sure."""
    pairs = folds(0.02, -0.015, 0.01)
    assert stats.corrected_t(pairs) > 0.3 and stats.wilcoxon(pairs) < 0.05
    found = stats.bootstrap(pairs, resamples=500)
    assert found.low < 0 < found.high and stats.cohens_dz(pairs.fold_means) < 1
    assert math.isnan(stats.corrected_t(folds(0.02)))


@pytest.mark.parametrize("row", ["M8-cases"])
def test_arms_that_were_scored_on_other_cases_are_not_compared(row: str) -> None:
    rows = [
        ("t", system, 1.0, 0, 0, case, "foreground", 0.5)
        for system, cases in (("a", "xy"), ("b", "xz"))
        for case in cases
    ]
    table = pd.DataFrame(
        rows, columns=["task", "system", "fraction", "fold", "seed", "case", "label", "dice"]
    )
    with pytest.raises(
        StatsError,
        match=r"t fold 0 seed 0: a and b were not scored on the same cases: \['y', 'z'\]",
    ):
        run_pairs.pair(table, "a", "b", "t")


@pytest.mark.parametrize("row", ["M9"])
def test_forty_comparisons_of_nothing_are_corrected_together(row: str) -> None:
    """Chance of at least one false claim among forty: most of the time as they are, about one in
    twenty after Holm."""
    draws = np.random.default_rng(0).uniform(size=(60, 40))
    plain, corrected = (
        (draws < 0.05).any(1).mean(),
        np.mean([min(stats.holm(p.tolist())) < 0.05 for p in draws]),
    )
    assert plain > 0.8 and corrected < 0.15


@pytest.mark.parametrize("row", ["M10"])
def test_every_arm_is_tuned_equally_often(row: str, tmp_path: Path) -> None:
    for path in (CONFIG_DIR / "studies").glob("*.yaml"):
        if "\ntuning:" in path.read_text():
            counts = pd.Series(
                [trial.config.system for trial in tuning.trials(path.stem)]
            ).value_counts()
            assert counts.nunique() == 1, path.stem
    path = tmp_path / "tiny.yaml"
    path.write_text(
        "tasks: [phantoms]\ngrid: [{name: main, systems: [vit_baseline,"
        " medvisionllama_v3_mlp]}]\ntuning: {fold: 0, seed: 1, trials: [{systems: [vit_baseline],"
        " lr: [0.1, 0.2], train_epochs: 1}, {systems: [medvisionllama_v3_mlp], lr: [0.1],"
        " train_epochs: 1}]}\n"
    )
    with pytest.raises(ConfigError, match="same number of trials"):
        tuning.trials(str(path))


@pytest.mark.parametrize("row", ["M11"])
def test_a_number_typed_into_the_results_is_overwritten_by_the_records(
    row: str, tmp_path: Path
) -> None:
    """What stands between the markers is rebuilt from the records; a README without markers is
    refused."""
    page = tmp_path / "README.md"
    page.write_text(f"a\n{readme.BEGIN}\nDice 0.987654\n{readme.END}\nb\n")
    assert readme.update_readme(page, "words") and "0.987654" not in page.read_text()
    page.write_text("Dice 0.987654")
    with pytest.raises(TableError, match="README.md.*results:begin"):
        readme.update_readme(page, "words")


@pytest.mark.faults
def test_false_positives_at_length() -> None:
    """The planned test under no difference, folds correlated as the test assumes, run spread of 0
    to 2 Dice points."""
    rates = []
    for points in (0.0, 1.0, 2.0):
        planted = calibration.Components(
            fold=0.2e-4,
            run=(points / 100) ** 2,
            case=0.5e-4,
            residual=1e-4,
            folds=5,
            seeds=2,
            cases=12,
        )
        rates.append(
            float(
                calibration.rates(planted, 5, 2, resamples=50).loc[
                    calibration.CORRECTED, "correlated"
                ]
            )
        )
    shown = ", ".join(f"{rate:.3f}" for rate in rates)
    record_figure(
        "false_positive_rate",
        max(rates, key=lambda rate: abs(rate - 0.05)),
        3 * calibration.STUDIES,
        f"5 folds, 2 seeds, run sd 0, 1 and 2 points: {shown}; the one furthest from 0.05 is given",
    )
    assert all(abs(rate - 0.05) <= 0.01 for rate in rates)
