"""Records of activations: made from weights, the same bytes twice, bound to the weights, small;
what is missing is named."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mvl.core import files, run_folder
from mvl.core.config import Config, load_config
from mvl.datasets import loaders
from mvl.datasets.splits import load_split
from mvl.datasets.task import TaskError
from mvl.datasets.task_data import open_task
from mvl.evidence import activation_maps, activation_records, predicted
from mvl.evidence.activations import COLUMNS, MEASURES
from mvl.evidence.chapter import Chapter
from mvl.models.build import build_system, own_state
from mvl.study import tables
from mvl.training import checkpoints
from tests.finished_run import write_run

STUDY = """
title: test
tasks: [phantoms]
grid:
  - {name: main, systems: [vit_baseline, medvisionllama_v3, unet], folds: [0, 1], seeds: [0, 1]}
data: {img_size: [16, 16, 16]}
model:
  {patch_size: [8, 8, 8], encoder_layers: 1, decoder_layers: 1, hidden_size: 32, mlp_dim: 64,
   token_block: {kind: mlp, source: SOURCE}}
"""
LLAMA = {
    "model_type": "llama",
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}


def finished(config: Config, results: Path) -> Path:
    """A run as training leaves it, with the weights that it began with."""
    names = load_split(open_task("phantoms"), config.fold, 1.0).test
    cases = [{"case": c, "dice": 0.01 * i, "voxels_label": i} for i, c in enumerate(names)]
    folder = write_run(results, config, cases)
    checkpoints.save_weights(folder / "weights.safetensors", own_state(build_system(config, 1, 1)))
    run_folder.seal(folder, {})
    return folder


@dataclass(frozen=True)
class Place:
    """A study of two finished runs and two that are not there."""

    study: str
    results: Path
    target: Path
    said: dict[str, object]

    def chapter(self) -> Chapter:
        """The runs as a chapter of published records sees them."""
        table = pd.DataFrame(tables.gather(self.study, self.results)[0])
        return Chapter(
            "llm_hybrid", self.study, self.results, table, pd.DataFrame(), pd.DataFrame(), ()
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("activations")
    files.write_json(folder / "llama" / "config.json", LLAMA)
    study = folder / "tiny.yaml"
    study.write_text(STUDY.replace("SOURCE", str(folder / "llama")))
    for system in ("vit_baseline", "medvisionllama_v3"):
        finished(load_config(str(study), "phantoms", system), folder)
    target = folder / "tiny"
    return Place(
        str(study), folder, target, activation_records.record(str(study), folder, target, limit=3)
    )


def test_the_first_seed_of_networks_with_stages_is_planned(place: Place) -> None:
    assert [(c.system, c.fold, c.seed) for c in activation_records.planned(place.study)] == [
        ("vit_baseline", 0, 0),
        ("vit_baseline", 1, 0),
        ("medvisionllama_v3", 0, 0),
        ("medvisionllama_v3", 1, 0),
    ]
    assert activation_records.planned("smoke") == []


def test_each_case_and_stage_has_a_row_and_what_is_absent_is_named(place: Place) -> None:
    rows = activation_records.read_table(place.target / activation_records.TABLE)
    assert list(rows.columns) == COLUMNS and len(rows) == place.said["rows"] == 3 * (3 + 6)
    assert list(rows[rows["system"] == "medvisionllama_v3"]["stage"])[:6] == [
        "embedding",
        "encoder",
        "mapper1",
        "block",
        "mapper2",
        "decoder",
    ]
    assert (
        np.isfinite(rows[MEASURES]).all().all()
        and (rows["effective_rank"] <= np.log(rows[["tokens", "width"]].min(axis=1)) + 1e-6).all()
    )
    assert place.said["absent"] == {
        f"phantoms/{s}/fraction-1.0_fold-1_seed-0": "missing"
        for s in ("vit_baseline", "medvisionllama_v3")
    }


def test_the_sample_is_spread_over_the_labelled_cases(place: Place) -> None:
    folder = run_folder.run_dir(place.results, activation_records.planned(place.study)[0])
    every = activation_records.sampled(folder, 99)
    labelled = pd.read_csv(folder / "cases.csv").query("voxels_label > 0")["case"]
    assert every == sorted(labelled) and activation_records.sampled(folder, 2) == [
        every[0],
        every[-1],
    ]


def test_the_same_weights_give_the_same_bytes_and_a_small_file(
    place: Place, tmp_path: Path
) -> None:
    activation_records.record(place.study, place.results, tmp_path, limit=3)
    for name in (activation_records.TABLE, activation_records.PICTURES):
        assert (tmp_path / name).read_bytes() == (place.target / name).read_bytes()
    assert (tmp_path / activation_records.PICTURES).stat().st_size < 300_000


def test_lost_weights_are_named_and_nothing_is_written(place: Place, tmp_path: Path) -> None:
    folder = finished(load_config(place.study, "phantoms", "vit_baseline"), tmp_path)
    (folder / "weights.safetensors").unlink()
    said = activation_records.record(place.study, tmp_path, tmp_path / "out")
    assert said["runs"] == 0 and not (tmp_path / "out").exists()
    assert (
        "weights are not there"
        in said["absent"]["phantoms/vit_baseline/fraction-1.0_fold-0_seed-0"]
    )


def test_measures_are_read_for_the_recorded_weights_alone(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "records_dir", lambda: place.results)
    chapter = place.chapter()
    rows, holes = activation_records.open_measures(chapter)
    assert len(rows) == 27 and len(holes) == 2 and "activations of ViT-Baseline: 1 run" in holes
    others = replace(chapter, runs=chapter.runs.assign(weights_sha256="0" * 64))
    assert len(activation_records.open_measures(others)[0]) == 0
    assert (
        activation_records.open_maps(others)[0] is None
        and "of others" in activation_records.open_maps(others)[1][0]
    )


def away(*_: object) -> None:
    """What a store says where there are no data."""
    raise TaskError("fetch it")


def test_maps_are_of_the_median_case_over_scan_and_label(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "records_dir", lambda: place.results)
    maps, holes = activation_records.open_maps(place.chapter())
    assert maps is not None and holes == ["activation maps of v3, random frozen block"]
    labelled = (
        pd.read_csv(place.results / place.chapter().done["run"].iloc[0] / "cases.csv")
        .query("voxels_label > 0")
        .sort_values("dice")
    )
    assert (
        maps.case == labelled["case"].iloc[::-1].iloc[len(labelled) // 2]
        and maps.dice["vit_baseline"] == maps.dice["medvisionllama_v3"]
    )
    assert list(maps.arms["medvisionllama_v3"]) == [
        "encoder",
        "mapper1",
        "mapper2",
        "decoder",
        "attention",
        "output",
    ]
    assert list(maps.arms["vit_baseline"]) == ["encoder", "decoder", "attention", "output"]
    assert (
        maps.scan is not None
        and maps.label is not None
        and maps.label.any()
        and maps.scan.shape == (16, 16)
    )
    monkeypatch.setattr(loaders, "CaseStore", away)
    blind, holes = activation_records.open_maps(place.chapter())
    assert (
        blind is not None
        and blind.scan is None
        and blind.label is None
        and "the scan under the activation maps: fetch it" in holes
    )


def test_a_chapter_of_own_runs_makes_its_files_once(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chapter = place.chapter()
    made = (place.target / activation_records.TABLE).stat().st_mtime_ns
    assert (
        activation_records.refresh(chapter) == []
        and (place.target / activation_records.TABLE).stat().st_mtime_ns == made
    )
    kept = (place.target / activation_records.TABLE).read_bytes()
    (place.target / activation_records.TABLE).unlink()
    monkeypatch.setattr(activation_records, "CASES", 1)
    asked: list[Path] = []
    monkeypatch.setattr(
        activation_records, "record", lambda study, results, target: asked.append(target)
    )
    activation_records.refresh(chapter)
    assert asked == [place.target]
    (place.target / activation_records.TABLE).write_bytes(kept)


def test_pictures_come_back_within_a_step() -> None:
    values = np.random.default_rng(0).normal(size=(9, 7))
    steps, (low, high) = activation_maps.squeezed(values)
    assert np.abs(low + (high - low) * steps / 255 - values).max() < (high - low) / 255
    assert activation_maps.squeezed(np.ones((2, 2)))[0].max() == 0
    assert predicted.packed({"a": steps}, {"x": 1}) == predicted.packed({"a": steps}, {"x": 1})


def test_before_and_after_are_means_over_cases() -> None:
    base = {"study": "s", "task": "t", "fraction": 1.0, "fold": 0, "seed": 0}
    rows = pd.DataFrame(
        [
            base | {"system": s, "case": c, "stage": stage, "lsvr": value}
            for s, stage, values in (
                ("a", "encoder", (1, 3)),
                ("a", "mapper1", (2, 4)),
                ("a", "block", (5, 6)),
                ("a", "mapper2", (0, 1)),
                ("b", "bottleneck", (7, 9)),
            )
            for c, value in zip("xy", values)
        ]
    )
    table = activation_records.before_after(rows, "lsvr").set_index(["system", "place"])
    assert table.loc[("a", "at the block's width"), ["before", "after", "n_cases"]].tolist() == [
        3,
        5.5,
        2,
    ]
    assert table.loc[("a", "at the network's width"), ["before", "after"]].tolist() == [2, 0.5]
    assert table.loc[("b", "at the network's width"), "before"] == 8 and np.isnan(
        table.loc[("b", "at the network's width"), "after"]
    )
    assert activation_records.before_after(rows.iloc[:0], "lsvr").empty


def test_facts_are_json(place: Place) -> None:
    with np.load(place.target / activation_records.PICTURES) as kept:
        facts = json.loads(str(kept["facts"]))
        assert all(kept[name].dtype == np.uint8 for name in kept.files if name != "facts")
    assert set(facts["numbers"]["medvisionllama_v3"]) == {
        "embedding",
        "encoder",
        "mapper1",
        "block",
        "mapper2",
        "decoder",
    }
    assert all(len(weights) == 64 for weights in facts["weights"].values())
