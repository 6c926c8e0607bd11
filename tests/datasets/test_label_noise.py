"""Label noise: the stated share of training cases, nested over rates, fixed by the seed; rate 0 and
every other label stay as they are."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy import ndimage

from mvl.core.config import Config, DataConfig
from mvl.datasets.case_store import CaseStore
from mvl.datasets.label_noise import (
    boundary_noise,
    damaged_cases,
    label_damage,
    radius_of,
    region_noise,
)
from mvl.datasets.task_data import TaskData

CASES = [f"c{i:02d}" for i in range(30)]


def noisy(kind, rate, seed=0, **data):
    return Config(
        seed=seed,
        data=DataConfig(img_size=(48, 48), label_noise=kind, label_noise_rate=rate, **data),
    )


def disc(shape, radius, value=1):
    away = sum((axis - n / 2) ** 2 for axis, n in zip(np.indices(shape), shape, strict=True))
    return (away < radius**2).astype(np.uint8) * np.uint8(value)


def test_shares_are_exact_and_nested_and_the_same_for_both_kinds():
    chosen = [damaged_cases(noisy("boundary", rate), CASES) for rate in (0.0, 0.2, 0.4, 1.0)]
    assert [len(part) for part in chosen] == [0, 6, 12, 30] and chosen[0] < chosen[1] < chosen[
        2
    ] < chosen[3]
    assert (
        damaged_cases(noisy("region", 0.2), CASES[::-1])
        == chosen[1]
        != damaged_cases(noisy("region", 0.2, seed=1), CASES)
    )
    assert (
        damaged_cases(noisy("none", 0.2), CASES) == frozenset()
        and label_damage(noisy("none", 0.5), CASES) is None
    )


@pytest.mark.parametrize("kind", ["boundary", "region"])
@pytest.mark.parametrize("shape", [(48, 48), (24, 26, 22)])
def test_damage_is_fixed_by_the_seed_and_changes_the_chosen_alone(kind, shape):
    config, label = noisy(kind, 0.5), torch.as_tensor(disc(shape, 7))[None]
    chosen, damage = damaged_cases(config, CASES), label_damage(config, CASES)
    changed = {case: damage(case, label) for case in CASES}
    assert all(torch.equal(changed[case], label) != (case in chosen) for case in CASES)
    assert all(
        torch.equal(label_damage(config, CASES)(case, label), changed[case]) for case in chosen
    )
    assert len({changed[case].numpy().tobytes() for case in chosen}) > 5 and all(
        value.dtype == torch.uint8 for value in changed.values()
    )


def test_boundaries_move_by_the_stated_share_of_the_radius_and_never_vanish():
    label, rng = disc((64, 64), 16), np.random.default_rng(0)
    radii = [radius_of(boundary_noise(label, rng)) for _ in range(40)]
    assert (
        radius_of(label) == pytest.approx(16, abs=0.3)
        and 16 * 0.55 < min(radii) < 14
        and 18 < max(radii) < 16 * 1.45
    )
    dot = disc((20, 20), 1.2)
    assert all(boundary_noise(dot, rng).any() for _ in range(30))
    empty = np.zeros((20, 20), np.uint8)
    assert boundary_noise(empty, rng) is empty


def test_values_of_several_labels_stay_declared():
    label = disc((40, 40), 12)
    label[:, 20:] *= 2
    rng = np.random.default_rng(1)
    for noise in (boundary_noise, region_noise):
        assert all(set(np.unique(noise(label, rng))) <= {0, 1, 2} for _ in range(20))


def test_regions_are_dropped_added_and_moved():
    label = np.zeros((64, 64), np.uint8)
    label[5:15, 5:15] = label[40:50, 40:52] = 1
    rng, seen = np.random.default_rng(0), set()
    for _ in range(40):
        out = region_noise(label, rng)
        lost, gained = bool((label & ~out & 1).any()), bool((out & ~label & 1).any())
        seen.add((lost, gained))
        regions = ndimage.label(label & out)[1]
        assert regions == (1 if lost else 2)
    assert seen == {(True, False), (False, True), (True, True)}
    assert region_noise(np.zeros((32, 32), np.uint8), rng).any()


def test_training_labels_change_and_no_other(few_shapes):
    task, root = few_shapes
    names = tuple(case.case_id for case in TaskData(task, root).cases)
    clean = CaseStore(TaskData(task, root), names, noisy("none", 0.0).data)
    config = noisy("boundary", 0.5)
    train = CaseStore(TaskData(task, root), names, config.data, label_damage(config, names))
    held_out = CaseStore(TaskData(task, root), names, config.data)
    chosen = damaged_cases(config, names)
    for index, name in enumerate(names):
        for a, b in zip(clean.get(index), held_out.get(index), strict=True):
            assert torch.equal(a, b)
        assert torch.equal(train.get(index)[0], clean.get(index)[0])
        has_boundary = bool(clean.get(index)[1].any())
        assert torch.equal(train.get(index)[1], clean.get(index)[1]) != (
            name in chosen and has_boundary
        )
        assert np.array_equal(train.native(index).label, clean.native(index).label)


def test_a_run_damages_its_training_cases_only(few_shapes, monkeypatch, tmp_path):
    from mvl.training import run

    made = []

    class Stop(Exception):
        pass

    def trainer(config, first, val, *rest):
        made.extend((first, val))
        raise Stop

    task, root = few_shapes
    monkeypatch.setattr(run, "Trainer", trainer)
    monkeypatch.setattr(run, "open_task", lambda name, data_dir: TaskData(task, data_dir))
    monkeypatch.setattr("mvl.datasets.splits.ROOT", tmp_path)
    for rate in (0.0, 0.4):
        with pytest.raises(Stop):
            run.train_run(
                dataclasses.replace(noisy("region", rate), task="shapes"),
                tmp_path / str(rate),
                root,
                progress=False,
            )
    assert [store.damage is None for store in made] == [True, True, False, True]
