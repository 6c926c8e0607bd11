"""Example pictures: the cases are picked by rule, the masks are those of the recorded weights, and
the kept file is bound to them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from mvl.core import columns, files, run_folder
from mvl.core.config import load_config
from mvl.datasets.task_data import open_task
from mvl.evidence import example_cases, example_masks, predicted
from mvl.evidence.chapter import Chapter
from mvl.evidence.example_masks import Drawn
from mvl.training.run import train_run

STUDY = """
title: test
tasks: [phantoms]
grid: [{name: main, systems: [vit_baseline]}]
data: {img_size: [16, 16, 16]}
model: {patch_size: [8, 8, 8], encoder_layers: 1, decoder_layers: 1, hidden_size: 32, mlp_dim: 64}
train: {train_epochs: 3, batch_size: 4, lr: 0.005}
"""
ARMS = ("vit_baseline", "medvisionllama_v3")


def table(*keys: tuple[str, float, int, int], task: str = "phantoms") -> pd.DataFrame:
    """Done runs of (system, fraction, fold, seed), each with weights of its own."""
    rows = [
        {
            "study": "s",
            "task": task,
            "system": s,
            "fraction": f,
            "fold": k,
            "seed": n,
            "state": "done",
            "run": f"s/runs/{s}-{f}-{k}-{n}",
            "weights_sha256": files.sha256_bytes(f"{s}{f}{k}{n}".encode()),
        }
        for s, f, k, n in keys
    ]
    return pd.DataFrame(rows, columns=[*columns.RUN_KEYS, "state", "run", "weights_sha256"])


def scores(done: pd.DataFrame, dice: dict[str, float]) -> pd.DataFrame:
    """The same Dice of each case for every run."""
    return pd.DataFrame(
        [
            {k: row[k] for k in columns.KEYS_IN_STUDY} | {"case": c, "dice": d}
            for row in done.to_dict("records")
            for c, d in dice.items()
        ]
    )


def chapter(
    done: pd.DataFrame, cases: pd.DataFrame, results: Path, study: str = "quick"
) -> Chapter:
    return Chapter("llm_hybrid", study, results, done, cases, pd.DataFrame(), ())


def drawn(systems: tuple[str, ...] = ARMS) -> list[Drawn]:
    rng, affine = np.random.default_rng(0), tuple(map(tuple, np.diag([1.5, 1, 2, 1.0]).tolist()))

    def mask():
        return rng.random((9, 7, 5)) > 0.5

    return [
        Drawn(
            "phantoms",
            f"c{i}",
            rank,
            i,
            affine,
            {s: mask() for s in systems},
            dict.fromkeys(systems, 0.1 * i),
        )
        for i, rank in enumerate(example_cases.RANKS)
    ]


def test_the_run_that_most_arms_share_is_shown() -> None:
    done = table(
        ("vit_baseline", 1.0, 0, 0),
        ("vit_baseline", 1.0, 0, 1),
        ("medvisionllama_v3", 1.0, 0, 1),
        ("medvisionllama_v3", 0.1, 0, 0),
    )
    chosen = example_cases.common_runs(done)
    assert chosen[["system", "fraction", "seed"]].values.tolist() == [
        ["vit_baseline", 1.0, 1],
        ["medvisionllama_v3", 1.0, 1],
    ]
    tie = example_cases.common_runs(table(("vit_baseline", 1.0, 1, 0), ("vit_baseline", 1.0, 0, 2)))
    assert tie[["fold", "seed"]].values.tolist() == [[0, 2]]


def test_best_median_and_worst_are_picked_by_the_first_arm() -> None:
    chosen = table(("vit_baseline", 1.0, 0, 0), ("medvisionllama_v3", 1.0, 0, 0))
    cases = scores(chosen.iloc[:1], {"a": 0.5, "b": 0.9, "c": 0.1, "d": 0.7, "e": 0.9})
    others = [
        scores(chosen.iloc[1:], {"a": 0.99, "b": 0.0}),
        scores(table(("vit_baseline", 1.0, 0, 1)), {"c": 1.0, "b": 0.0}),
    ]
    assert example_cases.pick_cases(pd.concat([*others, cases]), chosen) == [
        ("b", "best"),
        ("d", "median"),
        ("c", "worst"),
    ]
    assert len(example_cases.pick_cases(scores(chosen, {"a": 0.5}), chosen)) == 1


def test_kept_masks_read_back_bit_for_bit_and_hold_no_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example_masks, "read_volume", lambda *_: pytest.fail("masks need no scans"))
    chosen, before = table(*((s, 1.0, 0, 0) for s in ARMS)), drawn()
    (tmp_path / example_masks.FILE).write_bytes(example_masks.packed(before, chosen))
    after = example_masks.read_drawn(tmp_path / example_masks.FILE, chosen)
    assert [replace(e, predictions={}) for e in after] == [
        replace(e, predictions={}) for e in before
    ]
    for old, new in zip(before, after):
        assert all(np.array_equal(old.predictions[s], new.predictions[s]) for s in ARMS)
    assert all(
        "_bits_" in name or name == "facts" for name in np.load(tmp_path / example_masks.FILE).files
    ), "scans are never kept"
    one = example_masks.read_drawn(tmp_path / example_masks.FILE, chosen.iloc[:1])
    assert [list(e.predictions) for e in one] == [["vit_baseline"]] * 3 and list(one[0].dice) == [
        "vit_baseline"
    ]
    assert example_masks.packed(before, chosen) == example_masks.packed(before, chosen)


def test_the_file_of_three_cases_and_four_arms_is_small() -> None:
    x, y, z = np.indices((40, 52, 40))
    blob = (x - 20) ** 2 / 64 + (y - 26) ** 2 / 400 + (z - 20) ** 2 / 64 < 1
    arms = (*ARMS, "medvisionllama_v3_random", "medvisionllama_v3_mlp")
    many = [
        replace(one, predictions={s: np.roll(blob, i, 1) for i, s in enumerate(arms)})
        for one in drawn(arms)
    ]
    assert len(example_masks.packed(many, table(*((s, 1.0, 0, 0) for s in arms)))) < 100_000


def test_a_slice_is_taken_from_scan_label_and_masks_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    one = drawn()[2]
    scan = np.random.default_rng(1).normal(size=(9, 7, 5))
    monkeypatch.setattr(example_masks, "read_volume", lambda *_: (scan, scan > 0, np.eye(4)))
    shown = example_masks.example(one)
    assert np.array_equal(shown.scan, scan[..., 2]) and np.array_equal(
        shown.label, scan[..., 2] > 0
    )
    assert np.array_equal(
        shown.predictions["vit_baseline"], one.predictions["vit_baseline"][..., 2]
    )


def test_masks_of_other_weights_or_another_ranking_are_not_shown(tmp_path: Path) -> None:
    chosen = table(("vit_baseline", 1.0, 0, 0))
    (tmp_path / example_masks.FILE).write_bytes(
        example_masks.packed(drawn(("vit_baseline",)), chosen)
    )

    def read(wanted):
        return example_masks.read_drawn(tmp_path / example_masks.FILE, wanted)

    assert len(read(chosen)) == 3
    assert (
        read(chosen.assign(weights_sha256="0" * 64)) == []
        and read(chosen.assign(system="medvisionllama_v3")) == []
    )
    assert read(table(("vit_baseline", 1.0, 0, 1))) == []
    assert example_masks.read_drawn(tmp_path / "none.npz", chosen) == []


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "default_results_dir", lambda: tmp_path / "own")
    done = table(("vit_baseline", 1.0, 0, 0))
    found, holes = example_masks.load_examples(chapter(done.iloc[:0], pd.DataFrame(), tmp_path))
    assert found == [] and holes == ["no finished run to draw predictions of"]
    found, holes = example_masks.load_examples(chapter(done, scores(done, {"a": 0.5}), tmp_path))
    assert found == [] and done["run"][0] in holes[0] and "mvl study run quick" in holes[0]
    files.atomic_write(tmp_path / done["run"][0] / "weights.safetensors", "other weights")
    assert example_masks.load_examples(chapter(done, scores(done, {"a": 0.5}), tmp_path))[0] == []


def test_scans_that_are_not_there_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "default_results_dir", lambda: tmp_path / "own")
    monkeypatch.setattr(example_masks, "predicted_masks", lambda *_: {})
    done = table(("vit_baseline", 1.0, 0, 0), task="Task04_Hippocampus")
    files.atomic_write(tmp_path / done["run"][0] / "weights.safetensors", "vit_baseline1.000")
    monkeypatch.setenv("MVL_DATA", str(tmp_path / "no_data"))
    found, holes = example_masks.load_examples(chapter(done, scores(done, {"a": 0.5}), tmp_path))
    assert found == [] and "need the scans" in holes[0] and "mvl fetch" in holes[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Chapter:
    """The chapter of one tiny ViT, trained and scored on the test phantoms."""
    folder = tmp_path_factory.mktemp("results")
    (folder / "tiny.yaml").write_text(STUDY)
    config = load_config(str(folder / "tiny.yaml"), "phantoms", "vit_baseline", fraction=0.3)
    run = train_run(config, folder, progress=False)
    done = pd.DataFrame(
        [
            {k: getattr(config, k) for k in columns.RUN_KEYS}
            | {
                "state": "done",
                "run": str(run.relative_to(folder)),
                "weights_sha256": files.sha256_file(run / "weights.safetensors"),
            }
        ]
    )
    return chapter(done, pd.read_csv(run / "cases.csv"), folder, config.study)


def label_of(case: str) -> np.ndarray:
    """The label of a phantom, from its file."""
    files_of = {c.case_id: c.label for c in open_task("phantoms").cases}
    return np.asarray(nibabel.nifti1.load(files_of[case]).dataobj) > 0


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_masks_are_those_that_were_scored(trained: Chapter) -> None:
    """The Dice of a redrawn mask with the label file is the recorded one."""
    case = str(trained.cases.sort_values("dice")["case"].iloc[-1])
    mask = predicted.predicted_masks(trained.results_dir / trained.done["run"].iloc[0], [case])[
        case
    ]
    recorded = trained.cases.set_index("case")["dice"][case]
    assert recorded > 0.05, "the tiny network found nothing, so the test would say nothing"
    assert overlap(mask, label_of(case)) == pytest.approx(recorded, abs=1e-9)


def test_examples_are_drawn_once_and_kept(
    trained: Chapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, holes = example_masks.load_examples(trained)
    assert holes == [] and [e.rank for e in found] == list(example_cases.RANKS)
    recorded = trained.cases.set_index("case")["dice"]
    assert [e.dice["vit_baseline"] for e in found] == [recorded[e.case] for e in found] and found[
        0
    ].dice["vit_baseline"] == recorded.max()
    for example in found:
        assert example.label.sum() == label_of(example.case).sum(axis=(0, 1)).max()
        assert example.scan.shape == example.predictions["vit_baseline"].shape
    monkeypatch.setattr(example_masks, "predicted_masks", lambda *_: pytest.fail("drawn again"))
    again, _ = example_masks.load_examples(trained)
    assert [e.case for e in again] == [e.case for e in found]
    assert all(
        np.array_equal(a.predictions["vit_baseline"], b.predictions["vit_baseline"])
        for a, b in zip(found, again)
    )


def test_published_records_take_pictures_only_when_told(
    trained: Chapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "records_dir", lambda: tmp_path)
    monkeypatch.setattr(run_folder, "default_results_dir", lambda: trained.results_dir)
    records = replace(trained, results_dir=tmp_path)
    assert len(example_masks.load_examples(records)[0]) == 3 and list(tmp_path.rglob("*.npz")) == []
    assert example_masks.save_examples(records) == tmp_path / records.study / example_masks.FILE
    assert (
        len(example_masks.read_drawn(tmp_path / records.study / example_masks.FILE, records.done))
        == 3
    )
    assert example_masks.save_examples(replace(records, runs=records.runs.iloc[:0])) is None


def test_the_command_keeps_masks_and_roughness_of_the_published_study(
    trained: Chapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "records_dir", lambda: tmp_path)
    asked = []
    monkeypatch.setattr(
        example_masks,
        "open_chapter",
        lambda topic, study, results: (
            asked.append((topic, study)) or replace(trained, results_dir=results)
        ),
    )
    example_masks.main(["quick", "--weights", str(trained.results_dir)])
    assert asked == [("qualitative", "quick")]
    assert sorted(p.name for p in (tmp_path / trained.study).iterdir()) == [
        "examples.npz",
        "masks.csv",
    ]


@pytest.mark.parametrize("kept", [True, False])
def test_the_studys_worst_case_is_drawn_by_its_own_runs_where_their_weights_are(
    kept: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done = table(*((system, 1.0, fold, 0) for fold in (0, 1) for system in ARMS))
    near, far = (done[done["fold"] == fold] for fold in (0, 1))
    dice = {"a": 0.9, "b": 0.8, "c": 0.7}
    cases = pd.concat([scores(near, dice), scores(far, {"d": 0.2, "e": 0.9})])
    chapter = Chapter("qualitative", "s", tmp_path, done, cases, cases, ())
    mask = np.ones((3, 3, 3), bool)
    monkeypatch.setattr(example_masks, "read_volume", lambda *_: (mask, mask, np.eye(4)))
    monkeypatch.setattr(predicted, "has_weights", lambda *_: kept)
    asked: list[tuple[str, list[str]]] = []

    def predicted_masks(run: Path, wanted: list[str], _: object) -> dict[str, np.ndarray]:
        asked.append((run.name, wanted))
        return dict.fromkeys(wanted, mask)

    monkeypatch.setattr(example_masks, "predicted_masks", predicted_masks)
    chosen = example_cases.common_runs(done)
    found = example_masks.draw(chapter, chosen, tmp_path)
    last = [("d", example_cases.STUDY_WORST, 1, 0)] if kept else []
    assert [(one.case, one.rank, one.fold, one.seed) for one in found] == [
        ("a", "best", 0, 0),
        ("b", "median", 0, 0),
        ("c", "worst", 0, 0),
        *last,
    ]
    if not kept:
        return
    assert asked[-1] == (f"{ARMS[1]}-1.0-1-0", ["d"]) and found[-1].dice["vit_baseline"] == 0.2

    # the kept file brings them back, and is void where the further runs have other weights
    used = example_cases.used_runs(done, [(one.fold, one.seed) for one in found])
    path = tmp_path / example_masks.FILE
    path.write_bytes(example_masks.packed(found, used))
    again = example_masks.read_drawn(path, chosen, done)
    assert [(one.case, one.fold) for one in again] == [("a", 0), ("b", 0), ("c", 0), ("d", 1)]
    other = done.assign(weights_sha256=done["weights_sha256"].where(done["fold"] == 0, "other"))
    assert example_masks.read_drawn(path, chosen, other) == []
