"""The bench of the loader measures every source, and its sentence follows from the record; no speed
is tested."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from mvl.bench import loader
from mvl.core.config import load_config
from mvl.datasets import decoded_cache


def record(memory: float, disk: float, files: float, augmentation: float, asked: float) -> dict:
    """A record with these processor seconds per volume."""
    rows = [
        {
            "source": source,
            "augment": augment,
            "workers": workers,
            "volumes_per_s": 1.0,
            "cpu_s": base + augmentation * augment,
        }
        for source, base in (("files", files), ("disk", disk), ("memory", memory))
        for augment in (True, False)
        for workers in loader.WORKERS
    ]
    return {
        "task": "T",
        "img_size": [8, 8, 8],
        "volumes": 4,
        "rows": rows,
        "asked": {"net": {"step_s": 4 / asked, "volumes_per_s": asked}},
        "large": {"shape": [9, 9, 9], "cpu_s": 2.0},
        "cores": 2,
        "load": 1.5,
    }


def test_the_sentence_names_what_takes_longest_and_the_cores_that_are_needed():
    said = loader.starving(record(0.01, 0.02, 0.05, 0.2, 50.0))
    assert "takes longest is augmentation (200 of 250 ms" in said
    assert "0.080 s a step, 50.0 volumes a second" in said
    assert (
        "it waits: 11 from memory, 13 when each visit decodes a small scan, 111 when it decodes one"
        " of 9x9x9 (2.0 s)" in said
    )
    assert "takes longest is decoding a small scan (390 of 450 ms" in loader.starving(
        record(0.01, 0.02, 0.4, 0.05, 50.0)
    )


def test_every_source_is_measured_and_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("MVL_CACHE", "before")
    config = load_config("quick", "phantoms", "vit_baseline")
    seen: list[tuple[str, str | None]] = []
    kept = decoded_cache.kept
    monkeypatch.setattr(
        decoded_cache,
        "kept",
        lambda *words: seen.append(str(decoded_cache.folder())) or kept(*words),
    )
    config = replace(config, data=replace(config.data, img_size=(16, 16, 16)))
    value = loader.bench(config=config, volumes=2, large=(12, 10, 8))
    assert [(r["source"], r["augment"], r["workers"]) for r in value["rows"]] == [
        (s, a, w) for s in loader.SOURCES for a in (True, False) for w in loader.WORKERS
    ]
    assert (
        all(r["volumes_per_s"] > 0 and r["cpu_s"] > 0 for r in value["rows"])
        and value["large"]["cpu_s"] > 0
    )
    assert {place == "None" for place in seen} == {True, False}, "with the cache, and without"
    assert str(decoded_cache.folder()).endswith("before"), "put back afterwards"
    path = tmp_path / "loader.json"
    path.write_text(json.dumps(value, allow_nan=False))
    shown = loader.facts(path)["loader"]
    assert "of processor time alone" in shown and "of processor time alone" in loader.show(value)
    assert shown.count("\n| ") == 7 and "volumes a second" in shown and "phantoms" in shown
    assert "not measured" in loader.facts(tmp_path / "none.json")["loader"]


def test_the_augmentation_of_a_batch_is_measured_beside_that_of_a_case_alone(monkeypatch):
    config = load_config("quick", "phantoms", "vit_baseline")
    config = replace(config, data=replace(config.data, img_size=(16, 16, 16)))
    times = loader.augmentation_times(config, 3, None, repeats=1)
    assert times["ratio"] == times["batch_ms"] / times["alone_ms"] > 0 and times["bar"] == 0.5
    line = loader.augmentation_line(
        {"alone_ms": 140.0, "batch_ms": 63.0, "ratio": 0.45, "bar": 0.5}
    )
    assert (
        "140 ms" in line
        and "63 ms in a batch" in line
        and "0.45 of it (bar: at most 0.5, met)" in line
    )
    assert "NOT met" in loader.augmentation_line(
        {"alone_ms": 100.0, "batch_ms": 51.0, "ratio": 0.51, "bar": 0.5}
    )
    kept = loader.one_alone
    monkeypatch.setattr(
        loader, "one_alone", lambda change, image, label: (kept(change, image, label)[0] + 1, label)
    )
    with pytest.raises(RuntimeError, match="differs"):
        loader.augmentation_times(config, 3, None, repeats=1)


def test_what_is_asked_for_is_the_planners_step():
    from mvl.bench import plan, work

    config = load_config(loader.STUDY, loader.TASK, "vit_baseline")
    ask = loader.asked(config)["vit_baseline"]
    device = plan.find_device("h100")
    epochs = replace(config, train=replace(config.train, train_epochs=1000))
    trained = work.visits(epochs)[0]
    assert ask["step_s"] == pytest.approx(4 / ask["volumes_per_s"])
    assert plan.seconds(epochs, device) == pytest.approx(trained / ask["volumes_per_s"], rel=0.2), (
        "validation comes on top"
    )
