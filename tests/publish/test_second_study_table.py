"""Every number of the second study's table, recomputed from the runs' own files by pandas and scipy
alone: none of the package's statistics is imported."""

import itertools
import re
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import optimize, stats

from mvl.evidence import second_study
from mvl.evidence.arms import title
from mvl.publish import answer_in_brief, second_study_table

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "data" / "results"
NUMBER = r"[-+]\d+\.\d\d"


def grid(study: str) -> dict:
    return yaml.safe_load((ROOT / "mvl" / "configs" / "studies" / f"{study}.yaml").read_text())


def units(study: str, arms: tuple[str, str], fraction: float) -> list[tuple[int, int]]:
    """(fold, seed) that the study's YAML plans for both arms."""
    planned = {arm: set() for arm in arms}
    for block in grid(study)["grid"]:
        for arm in set(arms) & set(block["systems"]):
            if fraction in block.get("fractions", [1.0]):
                pairs = {(f, s) for f in block["folds"] for s in block.get("seeds", [0])}
                planned[arm] |= pairs
    return sorted(planned[arms[0]] & planned[arms[1]])


@cache
def run_cases(study: str, arm: str, fraction: float, fold: int, seed: int) -> pd.Series | None:
    """A run's score of each case, in points."""
    task = grid(study)["tasks"][0]
    name = f"fraction-{fraction!r}_fold-{fold}_seed-{seed}"
    path = RECORDS / study / "runs" / task / arm / name / "cases.csv"
    if not path.is_file():
        return None
    rows = pd.read_csv(path)
    metric = "jaccard" if len(grid(study)["data"]["img_size"]) == 2 else "dice"
    return 100 * rows[rows["label"] == "foreground"].set_index("case")[metric]


def run_score(study: str, arm: str, fraction: float, fold: int, seed: int) -> float | None:
    """A run's mean score."""
    cases = run_cases(study, arm, fraction, fold, seed)
    return None if cases is None else float(cases.mean()) / 100


def fold_means(study: str, arms: tuple[str, str], fraction: float) -> np.ndarray | None:
    """The fold means of the difference in points, or None where a planned run is missing."""
    by_fold: dict[int, list[float]] = {}
    for fold, seed in units(study, arms, fraction):
        ours, theirs = (run_score(study, arm, fraction, fold, seed) for arm in arms)
        if ours is None or theirs is None:
            return None
        by_fold.setdefault(fold, []).append(100 * (ours - theirs))
    return np.array([np.mean(values) for values in by_fold.values()])


def spread(folds: np.ndarray) -> float:
    return float(folds.std(ddof=1) * np.sqrt(1 / len(folds) + 1 / 7))


def usage(
    study: str, network: str, intervention: str, fraction: float = 1.0, reference: str = ""
) -> list[float]:
    """The change of test Dice in each of the network's runs that is compared with a reference, the
    network without a layer if none is named, in points."""
    hybrid = RECORDS / study / "runs" / grid(study)["tasks"][0] / network
    beside = units(study, (network, reference or ALONE[network]), fraction)
    paths = [hybrid / f"fraction-{fraction}_fold-{f}_seed-{s}" / "usage.csv" for f, s in beside]
    runs = [pd.read_csv(path) for path in paths if path.is_file()]
    by_run = [rows.loc[rows["intervention"] == intervention, "dice_difference"] for rows in runs]
    return [100 * changes.mean() for changes in by_run]


def pooled(groups: list[np.ndarray]) -> float:
    """The variance within groups."""
    return sum(((g - g.mean()) ** 2).sum() for g in groups) / sum(len(g) - 1 for g in groups)


def variance_of_fold_means(study: str, arms: tuple[str, str], fraction: float) -> float:
    """What folds, seeds and cases give together, by the method of moments: a share of the folds
    that chance made negative counts as none, so that lucky agreement of a few folds is not
    believed."""
    by_fold: dict[int, list[pd.Series]] = {}
    for fold, seed in units(study, arms, fraction):
        ours, theirs = (run_cases(study, arm, fraction, fold, seed) for arm in arms)
        by_fold.setdefault(fold, []).append(ours - theirs)
    tables = [pd.concat(runs, axis=1).to_numpy().T for runs in by_fold.values()]  # (seeds, cases)
    seeds, cases = len(tables[0]), float(np.mean([1 / t.shape[1] for t in tables]))
    run = case = 0.0
    if seeds == 1:
        residual = pooled([t[0] for t in tables])
    else:
        rest = [t - t.mean(0) - t.mean(1, keepdims=True) + t.mean() for t in tables]
        free = sum((seeds - 1) * (t.shape[1] - 1) for t in tables)
        residual = sum((r**2).sum() for r in rest) / free
        run = max(0, pooled([t.mean(1) for t in tables]) - residual * cases)
        case = max(0, pooled([t.mean(0) for t in tables]) - residual / seeds)
    inside = run / seeds + (case + residual / seeds) * cases
    means = np.array([t.mean() for t in tables])
    return max(0.0, means.var(ddof=1) - inside) + inside


def found_with_80_percent(study: str, arms: tuple[str, str], fraction: float) -> float:
    """The true difference that the corrected t-test finds with 80 % at the hardest step of Holm's
    correction, by scipy's noncentral t."""
    folds = len({fold for fold, _ in units(study, arms, fraction)})
    family = 3 if study in ("left_atrium", "heart_published", "heart_tuned") else 1
    critical = stats.t.isf(0.025 / family, folds - 1)

    def lacking(shift: float) -> float:
        return stats.nct.sf(critical, folds - 1, shift) - 0.8  # the other tail is below 1e-6 here

    error = np.sqrt(variance_of_fold_means(study, arms, fraction) * (1 / folds + 1 / 7))
    return optimize.brentq(lacking, 0.5, 20) * error


LINK = re.compile(r"\[([^\[\]]*)\]\([^()\s]*\)")
"A Markdown link."


def published() -> str:
    """The published tables."""
    return second_study_table.summary_tables(FOUND, RECORDS)


def read(linked: str) -> tuple[list[tuple[str, float]], dict[str, list[str]]]:
    """A published table: its columns (study, share) and its rows by their first cell."""
    for study, system in re.findall(r"/results/(\w+)/runs/\w+/(\w+)#fraction-", linked):
        assert (RECORDS / study / "runs" / grid(study)["tasks"][0] / system).is_dir()
    assert linked.count("](") == linked.count("#fraction-")
    numbers = re.findall(r"\|[^|]*\][^|]* \[[-+]\d[^|]*", linked)
    assert len(numbers) == len(re.findall(r"\[[-+][\d.]+, [-+][\d.]+\]", linked)), (
        "all lead to runs"
    )
    lines = LINK.sub(r"\1", linked).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    titles = {grid(study)["title"]: study for study in RECORDED}
    columns = []
    for head in cells[0][1:]:
        share = re.search(r", (\d+) % of the data$", head)
        name = head[: share.start()] if share else head
        columns.append((titles[name], int(share[1]) / 100 if share else 1.0))
    return columns, {row[0]: row[1:] for row in cells[2:]}


RECORDED = second_study.recorded_studies(RECORDS)
FOUND = second_study.recorded_differences(RECORDS)
ALONE = {"medvisionllama_v3": "vit_baseline", "llm4seg": "cmunext"}
"Each network with a layer, and the same without one."
TABLES = {
    next(name for name in ALONE if linked.startswith(f"| {title(name)}, ")): read(linked)
    for linked in published().split("\n\n")
}
ARMS = {f"minus {title(pair[1])}": pair[1] for q in second_study.QUESTIONS for pair in q.contrasts}
PLACES = [(name, i) for name, (columns, _) in TABLES.items() for i in range(len(columns))]
CELLS = [(*place, row) for place in PLACES for row in TABLES[place[0]][1] if row in ARMS]


def test_the_tables_have_the_arms_and_the_studies_that_are_recorded():
    columns, rows = TABLES["medvisionllama_v3"]
    assert {("hippocampus2_published", 1.0), ("hippocampus2_unmixed", 1.0)} <= set(columns)
    last = [
        "use of the layer, Dice points",
        "could be seen with 80 %",
        "ViT-Baseline by itself: Dice",
    ]
    assert list(rows)[-3:] == last and set(rows) - set(last) <= set(ARMS)


@pytest.mark.parametrize(("network", "column", "label"), CELLS)
def test_each_difference_is_that_of_the_runs(network, column, label):
    columns, rows = TABLES[network]
    (study, fraction), cell = columns[column], rows[label][column]
    arms = (network, ARMS[label])
    folds = fold_means(study, arms, fraction) if units(study, arms, fraction) else None
    if not cell:
        return  # no contrast of the protocol
    if cell == second_study_table.OPEN:
        assert folds is None
        return
    cell, *others = cell.split(" (other runs; in these h = 0: ")
    is_other = not set(units(study, arms, fraction)) <= set(
        units(study, (network, ALONE[network]), fraction)
    )
    assert len(others) == is_other
    if others:
        silenced = np.mean(usage(study, network, "zero", fraction, arms[1]))
        assert float(others[0].rstrip(")")) == pytest.approx(silenced, abs=0.00501)
    reach = stats.t.ppf(0.975, len(folds) - 1) * spread(folds)
    expected = [folds.mean(), folds.mean() - reach, folds.mean() + reach]
    assert [float(n) for n in re.findall(NUMBER, cell)] == pytest.approx(expected, abs=0.00501)
    margin = 1 if network == "medvisionllama_v3" else 0.4
    one_sided = (margin - abs(folds.mean())) / spread(folds)
    if label == f"minus {title('vit_baseline')}" and fraction == 1.0:
        interventions = ("zero", "shuffled_tokens", "shuffled_weights")
        loses = [-np.mean(usage(study, network, what)) for what in interventions]
        called = not cell.endswith(("higher", "not decided"))
        assert cell.endswith("unused") == (max(loses) < 1 and called)
    if "equivalent" in cell:
        assert stats.t.sf(one_sided, len(folds) - 1) < 0.05
    if cell.endswith(("higher", "lower")):
        t = folds.mean() / spread(folds)
        assert 2 * stats.t.sf(abs(t), len(folds) - 1) < 0.05
        assert cell.endswith("higher" if t > 0 else "lower")


@pytest.mark.parametrize(("network", "column"), PLACES)
def test_use_and_power_are_those_of_the_runs(network, column):
    columns, rows = TABLES[network]
    study, fraction = columns[column]
    use, seen = (
        rows["use of the layer, Dice points"][column],
        rows["could be seen with 80 %"][column],
    )
    if fraction == 1.0:
        expected = [np.mean(usage(study, network, name)) for name in ("zero", "shuffled_tokens")]
        assert [float(n) for n in re.findall(NUMBER, use)] == pytest.approx(expected, abs=0.00501)
    alone, planned = ALONE[network], units(study, (ALONE[network],) * 2, fraction)
    scores = [run_score(study, alone, fraction, *unit) for unit in planned]
    by_itself = next(cells for row, cells in rows.items() if " by itself: " in row)[column]
    assert float(by_itself) == pytest.approx(np.mean([s for s in scores if s]), abs=0.000501)
    if seen:
        number = float(seen.removesuffix(" points"))
        expected = found_with_80_percent(study, (network, ALONE[network]), fraction)
        assert number == pytest.approx(expected, abs=0.00501)


def test_the_answer_in_brief_is_that_of_the_runs():
    lines = answer_in_brief.answer_table(FOUND, RECORDS).splitlines()[2:]
    titles = {grid(study)["title"]: study for study in RECORDED}
    assert len(lines) == sum(
        bool(rows[f"minus {title(ALONE[name])}"][i].strip())
        for name, i in PLACES
        for rows in [TABLES[name][1]]
    )
    for line in lines:
        place, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        name, _, share = place.partition(", 10 %")
        study, fraction = titles[name], 0.1 if share else 1.0
        network = "llm4seg" if "LLM4Seg" in name else "medvisionllama_v3"
        for reference, cell in zip((ALONE[network], f"{network}_shuffled"), cells, strict=False):
            folds = fold_means(study, (network, reference), fraction)
            if cell == second_study_table.OPEN:
                assert folds is None
                continue
            reach = stats.t.ppf(0.975, len(folds) - 1) * spread(folds)
            expected = [folds.mean(), folds.mean() - reach, folds.mean() + reach]
            assert [float(n) for n in re.findall(NUMBER, cell)] == pytest.approx(
                expected, abs=0.00501
            )
        silenced = usage(study, network, "zero", fraction)
        lose = sum(change <= -1 for change in silenced)
        assert cells[2].endswith(f" ({lose} of {len(silenced)})")
        assert float(cells[2].split()[0]) == pytest.approx(np.mean(silenced), abs=0.00501)
        expected = found_with_80_percent(study, (network, ALONE[network]), fraction)
        assert float(cells[3]) == pytest.approx(expected, abs=0.00501)
        planned = units(study, (ALONE[network],) * 2, fraction)
        scores = [run_score(study, ALONE[network], fraction, *unit) for unit in planned]
        assert float(cells[4].split()[0]) == pytest.approx(
            np.mean([s for s in scores if s]), abs=0.00501
        )


def test_the_spread_between_seeds_is_that_of_the_runs():
    lines = second_study_table.seed_table(RECORDED, RECORDS).splitlines()[2:]
    shown = {cells[0].strip(): cells for cells in (line.strip("|").split("|") for line in lines)}
    assert len(shown) == len(lines) > 2
    for study in RECORDED:
        scores: dict[tuple[float, str, int], list[float]] = {}
        for block in grid(study)["grid"]:
            for fraction in block.get("fractions", [1.0]):
                for arm, fold in itertools.product(block["systems"], block["folds"]):
                    place = scores.setdefault((fraction, arm, fold), [])
                    found = (
                        run_score(study, arm, fraction, fold, s) for s in block.get("seeds", [0])
                    )
                    place += [100 * score for score in found if score is not None]
        for fraction in {key[0] for key in scores}:
            several = [v for key, v in scores.items() if key[0] == fraction and len(v) > 1]
            name = second_study_table.place_in_words(study, fraction)
            assert (name in shown) == bool(several)
            if several:
                within = np.sqrt(np.mean([np.var(values, ddof=1) for values in several]))
                _, _, folds, spread = shown[name]
                assert int(folds) == len(several)
                assert float(spread.split()[0]) == pytest.approx(within, abs=0.00501)


def test_a_study_with_one_seed_has_no_row():
    assert second_study_table.seed_table([second_study.UNMIXED], RECORDS) == ""


def test_the_gradients_are_those_of_the_runs():
    study = "hippocampus2_gradients"
    files = sorted((RECORDS / study).glob("runs/*/*/*/gradients.csv"))
    table, _, words = second_study_table.gradient_table(RECORDS).partition("\n\n")
    lines = table.splitlines()[2:]
    if files:
        rows = pd.concat([pd.read_csv(path) for path in files])
        hybrid, vit = (
            rows[rows["system"] == arm].groupby("epochs_done")["mean_cosine"].mean()
            for arm in ("medvisionllama_v3", "vit_baseline")
        )
        assert f" after {(hybrid > vit).sum()} of these {len(vit)} epochs" in words
    assert len(lines) == len({path.parts[-3] for path in files})
    for line in lines:
        name, folds, *shown = (cell.strip() for cell in line.strip("|").split("|"))
        system = re.search(r"/(\w+)#fraction-1.0\)$", name)[1]
        own = pd.concat([pd.read_csv(path) for path in files if path.parts[-3] == system])
        for cell, (_, values) in zip(shown, own.groupby("epochs_done")["mean_cosine"], strict=True):
            mean, low, high = (float(number) for number in re.findall(r"-?\d\.\d+", cell))
            assert mean == pytest.approx(values.mean(), abs=0.000501)
            assert [low, high] == pytest.approx([values.min(), values.max()], abs=0.00501)
        assert int(folds) == own["fold"].nunique() and name.startswith(f"[{title(system)}]")


def test_the_runs_trained_again_are_set_beside_the_first():
    again, first = ("hippocampus2_gradients", "hippocampus2_published")
    said = second_study_table.trained_again(RECORDS)
    places = [(arm, fold) for arm in grid(again)["grid"][0]["systems"] for fold in range(3)]
    scores = {
        study: {
            place: score
            for place in places
            if (score := run_score(study, place[0], 1.0, place[1], 0)) is not None
        }
        for study in (again, first)
    }
    both = scores[again].keys() & scores[first].keys()
    assert said.startswith(f"These {len(both)} runs") if both else said == ""
    words = {
        "vit_baseline": "the ViT alone",
        "medvisionllama_v3_shuffled": "itself with the weights shuffled",
        "medvisionllama_v3_identity": "its mappers alone",
    }
    for reference, name in words.items() if both else ():
        new, old = (
            np.mean([100 * (at["medvisionllama_v3", f] - at[reference, f]) for f in range(3)])
            for at in (scores[again], scores[first])
        )
        assert f"from {name} by {new:+.2f} in place of {old:+.2f}" in said
    apart = [100 * (scores[again][place] - scores[first][place]) for place in both]
    assert not apart or f"differs by {min(apart):+.2f} to {max(apart):+.2f} points" in said


def test_without_records_there_is_no_word_of_gradients(tmp_path):
    assert second_study_table.gradient_table(tmp_path) == ""
    assert second_study_table.trained_again(tmp_path) == ""
