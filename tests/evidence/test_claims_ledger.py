"""The ledger: every claim is whole, everything that it names exists, and the terminal prints the
verdicts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml

from mvl.cli import main
from mvl.core import files, run_folder
from mvl.core.columns import CASE_COLUMNS, RUN_KEYS
from mvl.core.config import ROOT
from mvl.evidence import (
    claims_evidence,
    claims_ledger,
    claims_rules,
    claims_tests,
    claims_text,
    claims_verdicts,
)
from mvl.evidence.claims_verdicts import REPRODUCED
from mvl.evidence.topics import TOPICS
from mvl.study import grid
from mvl.study.tables import EXTERNAL_COLUMNS, HISTORY_COLUMNS, RUN_COLUMNS

pytestmark = pytest.mark.usefixtures("few_resamples")

LEDGER = claims_ledger.load_claims()
ASKED = {
    *("hippocampus", "hippocampus2_published", "hippocampus2_tuned"),
    *("left_atrium", "heart_published"),
    *("busi", "isic", "kvasir"),
}
"Studies that the ledger may ask."
SYSTEMS = {path.stem for path in (ROOT / "mvl" / "configs" / "systems").glob("*.yaml")}


def test_there_are_at_least_twenty_claims_with_ids_of_their_own():
    assert len(LEDGER) >= 20 and len({claim.id for claim in LEDGER}) == len(LEDGER)
    assert {claim.paper for claim in LEDGER} == set(claims_ledger.PAPERS) and sum(
        claim.main for claim in LEDGER
    ) == 5
    assert {claim.confidence for claim in LEDGER} == {"A", "B", "none"}


@pytest.mark.parametrize("claim", LEDGER, ids=lambda claim: claim.id)
def test_everything_that_a_claim_names_exists(claim):
    studies = [grid.load_study(study) for study in claim.studies]
    assert {study.name for study in studies} <= ASKED
    named = {s for pair in claim.contrasts for s in pair} | {s for s in (claim.cheaper_than,) if s}
    named |= {f"{s}_{noise}" for s in named for noise in claim.noises}
    plans = [claims_ledger.planned_runs(study) for study in claim.studies]
    assert named <= SYSTEMS and all(named <= set(plan["system"]) for plan in plans), (
        "a system that the study does not plan"
    )
    assert (claim.topic or claim.chapter[3:]) in TOPICS and claim.chapter[:2].isdigit()
    assert (
        all((claim.place, claim.claim, claim.short, claim.support, claim.takes))
        and len(claim.short) <= 44
    )
    assert bool(claim.why) == (claim.rule in ("untestable", "conjunction")) and (
        claim.rule == "untestable"
    ) != bool(claim.contrasts)
    assert set(claim.controls) <= SYSTEMS and (
        not claim.explains or claim.explains in {other.id for other in LEDGER}
    )
    for plan in plans:
        shares = set(plan.loc[plan["system"].isin(named), "fraction"])
        assert set(claim.fractions) <= shares or not named


def test_reported_numbers_come_from_the_table():
    dice = next(claim for claim in LEDGER if claim.id == "mean_dice")
    assert claims_ledger.reported_numbers(dice) == [
        0.87,
        0.74,
    ] and dice.reported_gain == pytest.approx(0.13 / 0.26)
    sixty = next(claim for claim in LEDGER if claim.id == "sixty_of_sixty")
    assert sixty.reported_share == pytest.approx(41 / 60)


ENTRY = """
[[claim]]
id = "a"
paper = "P1"
place = "p"
confidence = "A"
short = "s"
claim = "c"
reported = [["average", "MedVisionLlama", "dice"]]
chapter = "02_llm_hybrid"
studies = ["hippocampus"]
rule = "gain"
contrasts = [["medvisionllama_v3", "vit_baseline"]]
support = "s"
takes = "t"
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('rule = "gain"', 'rule = "gian"', "rule is one of"),
        ('"MedVisionLlama", "dice"', '"MedVisionLlama", "dise"', "0 rows"),
        ('place = "p"\n', "", "place"),
        ('id = "a"', 'id = "a"\nmargn = 1', "margn"),
    ],
)
def test_a_faulty_claim_is_refused_by_name(tmp_path, old, new, message):
    (tmp_path / "claims.toml").write_text(ENTRY.replace(old, new))
    with pytest.raises(claims_evidence.ClaimError, match=message):
        claims_ledger.load_claims(tmp_path / "claims.toml")
    (tmp_path / "claims.toml").write_text(ENTRY + ENTRY)
    with pytest.raises(claims_evidence.ClaimError, match="stands twice"):
        claims_ledger.load_claims(tmp_path / "claims.toml")


def write_records(folder: Path, gain: float) -> None:
    """Records of main's hybrid and baseline, as a study's tables hold them."""
    plan = claims_ledger.planned_runs("hippocampus")
    keys = [
        ("hippocampus", *row)
        for row in plan[
            plan["system"].isin(["vit_baseline", "medvisionllama_v3"]) & (plan["fraction"] == 1)
        ].itertuples(index=False, name=None)
    ]

    def number(fold, seed, system, i):
        return (
            0.5
            + fold / 100
            + seed / 300
            + i / 50
            + (system == "medvisionllama_v3") * (gain + fold / 1000)
        )

    place = "hippocampus/runs/{1}/{2}/fraction-{3}_fold-{4}_seed-{5}"
    table = [
        dict(zip(RUN_KEYS, key)) | {"state": "done", "trainable": 1, "run": place.format(*key)}
        for key in keys
    ]

    def scored(key, i):
        return {
            "case": f"c{key[4]}_{i}",
            "label": "foreground",
            "status": "ok",
            "dice": number(key[4], key[5], key[2], i),
        }

    cases = [
        dict.fromkeys(CASE_COLUMNS, 0.5) | dict(zip(RUN_KEYS, key)) | scored(key, i)
        for key in keys
        for i in range(3)
    ]
    history = [
        dict(zip(RUN_KEYS, key))
        | {
            "epoch": 0,
            "lr": 1,
            "train_loss": 1,
            "val_loss": 1,
            "val_dice": 0.5,
        }
        for key in keys
    ]
    files.write_csv(
        folder / "hippocampus" / "runs.csv",
        [{**dict.fromkeys(RUN_COLUMNS, ""), **row} for row in table],
        RUN_COLUMNS,
    )
    files.write_csv(folder / "hippocampus" / "cases.csv", cases, CASE_COLUMNS)
    files.write_csv(folder / "hippocampus" / "history.csv", history, [*RUN_KEYS, *HISTORY_COLUMNS])


@pytest.mark.parametrize(
    ("gain", "word"), [(0.05, "reproduced"), (-0.05, "contradicted"), (0.0, "not reproduced")]
)
def test_records_on_disk_decide_and_other_records_decide_otherwise(
    tmp_path, monkeypatch, capsys, gain, word
):
    kept = [
        claim for claim in LEDGER if claim.id in ("mean_dice", "better_than_unetr", "medical_llms")
    ]
    monkeypatch.setattr(claims_ledger, "load_claims", lambda: kept)
    write_records(tmp_path, gain)
    assert (
        main.main(["claims", "--study", "hippocampus", "--results-dir", str(tmp_path), "--json"])
        == 0
    )
    printed = {entry["id"]: entry for entry in json.loads(capsys.readouterr().out)["claims"]}
    assert printed["mean_dice"]["word"] == word and printed["mean_dice"]["verdict"]["n"] == 10
    assert (
        printed["better_than_unetr"]["word"] == "not decided"
        and len(printed["better_than_unetr"]["verdict"]["missing"]) == 3
        and "3 planned runs of it are missing" in printed["better_than_unetr"]["needs"]
    )
    assert printed["medical_llms"]["word"] == "not testable here" and printed["mean_dice"][
        "reported"
    ] == [0.87, 0.74]


def test_the_nearest_study_whose_planned_runs_are_all_done_decides(tmp_path, monkeypatch):
    number = claims_evidence.Found("A minus B", "dice", 2, n_runs=2)
    half = claims_verdicts.Verdict("not decided", "Half.", (number,), missing=("a run",))
    done = claims_verdicts.Verdict("contradicted", "Done.", (number,))
    other = claims_verdicts.Verdict("reproduced", "First study.", (number,))
    claim = next(claim for claim in LEDGER if claim.id == "mean_dice")

    def judged(
        *verdicts: claims_verdicts.Verdict, claim: claims_evidence.Claim = claim
    ) -> claims_ledger.Entry:
        waiting = iter(verdicts)
        monkeypatch.setattr(claims_ledger, "judge", lambda claim, records: next(waiting))
        names = ("near", "further", "first")[: len(verdicts)]
        evidence = {name: claims_ledger.read_evidence("busi", tmp_path) for name in names}
        return claims_ledger.entry_of(claim, evidence)

    entry = judged(done, half, other)
    assert (entry.study, entry.word) == ("near", "contradicted")
    assert dict(entry.elsewhere) == {"further": half, "first": other}
    assert judged(half, done, other).study == "further"
    monkeypatch.setattr(claims_ledger, "what_would_decide", lambda *given: "more runs")
    alone = judged(half, half)
    assert (alone.study, alone.needs) == ("near", "more runs"), "none is whole: the nearest"
    tasks = next(claim for claim in LEDGER if claim.id == "ten_tasks")
    assert judged(other, half, done, claim=tasks).study == "first", "one member that fails decides"
    assert judged(half, other, half, claim=tasks).study == "further"


def test_what_explains_a_gain_that_is_not_there_is_moot(tmp_path, monkeypatch):
    kept = [claim for claim in LEDGER if claim.id in ("mean_dice", "rank_4")]
    monkeypatch.setattr(claims_ledger, "load_claims", lambda: kept)
    for gain, word in ((0.0, "moot"), (-0.05, "moot"), (0.05, "not decided")):
        write_records(tmp_path, gain)
        [_, rank] = claims_ledger.ledger(tmp_path, ("hippocampus",))
        assert rank.word == word and ("no gain to explain" in rank.verdict.sentence) == (
            word == "moot"
        )


def test_tests_on_another_source_are_judged_from_their_own_table(tmp_path):
    [claim] = [c for c in LEDGER if c.id == "llm4seg_generalizable"]
    plan = claims_ledger.planned_runs("isic")
    runs = plan[plan["system"].isin(claim.contrasts[0])]
    rows = [
        dict.fromkeys(EXTERNAL_COLUMNS, 0.5)
        | run
        | {"trained_on": run["task"], "task": "PH2_256", "study": "isic", "status": "ok"}
        | {"case": case, "label": label, "jaccard": 0.6 + gain * (run["system"] == "llm4seg")}
        for run in runs.to_dict("records")
        for case in ("a", "b")
        # the label of its own is no second case, and would turn the verdict round
        for label, gain in (("foreground", 0.05 + 0.001 * run["fold"]), ("1", -0.5))
    ]
    files.write_csv(tmp_path / "isic" / "external.csv", rows, EXTERNAL_COLUMNS)
    evidence = claims_ledger.read_evidence("isic", tmp_path)
    verdict = claims_ledger.judge(claim, replace(evidence, runs=plan.assign(state="done", run="r")))
    assert verdict is not None and verdict.word == REPRODUCED
    assert verdict.numbers[0].n_folds == 5 and abs(verdict.numbers[0].difference - 0.052) < 1e-9
    assert verdict.numbers[0].cases == "2 cases x 5 folds", "the same two in every fold"
    assert "2 cases x 5 folds" in verdict.sentence and "trainings alone" in verdict.sentence
    nothing = claims_ledger.judge(claim, claims_ledger.read_evidence("kvasir", tmp_path))
    assert nothing is not None and "External tests are not recorded" in nothing.sentence


def test_a_weak_measure_contradicts_nothing(monkeypatch):
    evidence = claims_evidence.Evidence(
        "hippocampus",
        claims_ledger.planned_runs("hippocampus"),
        pd.DataFrame(),
        pd.DataFrame(),
        pd.DataFrame(),
    )
    monkeypatch.setitem(
        claims_rules.RULES,
        "gain",
        lambda claim, records: claims_verdicts.Verdict("contradicted", "It is lower."),
    )
    claim = next(claim for claim in LEDGER if claim.id == "mean_dice")
    assert claims_ledger.judge(claim, evidence).word == "contradicted"
    weak = claims_ledger.judge(replace(claim, weak="it is measured after the sum"), evidence)
    assert (
        weak.word == "not reproduced"
        and weak.sentence == "It is lower. It is measured after the sum."
    )


def test_implied_claims_stand_apart():
    entries = [claims_ledger.Entry(claim, claim.studies[0], None) for claim in LEDGER]
    found = claims_text.groups(entries)
    assert list(found) == [*claims_ledger.PAPERS.values(), claims_ledger.IMPLIED]
    assert {entry.claim.id for entry in found[claims_ledger.IMPLIED]} == {
        "pretraining",
        "pretraining_few_shot",
        "llm4seg_pretraining",
    }
    assert sum(map(len, found.values())) == len(LEDGER)


def test_without_records_nothing_is_decided(tmp_path, capsys):
    assert main.main(["claims", "--results-dir", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert all(claim.short in text for claim in LEDGER) and all(
        name in text for name in claims_ledger.PAPERS.values()
    )
    assert (
        "reproduced  " not in text
        and "contradicted" not in text
        and "35 claims of the papers: " in text
    )
    assert claims_ledger.IMPLIED in text and "3 implied and tested by us: " in text


def test_generated_data_gives_no_verdict(capsys):
    entries = claims_ledger.ledger(run_folder.records_dir(), ("quick",))
    assert (
        entries
        and all(entry.verdict is None for entry in entries)
        and {e.claim.paper for e in entries} <= {"P1", "P1-v1"}
    )
    assert (
        "no verdict" in claims_text.claims_as_text(entries)
        and claims_text.as_json(entries)["claims"][0]["verdict"] is None
    )


def test_a_study_speaks_of_the_claims_whose_systems_it_plans():
    empty = pd.DataFrame()

    def chosen(study: str) -> set[str]:
        plan = claims_ledger.planned_runs(study)
        evidence = claims_evidence.Evidence(study, plan, empty, empty, empty)
        return {claim.id for claim in LEDGER if claims_ledger.planned(claim, evidence)}

    assert {"mean_dice", "rank_4"} <= chosen("paper")
    assert {"mean_dice", "pretraining"} <= chosen("decisive_published")
    assert not {"llm4seg_gain", "medical_llms"} & chosen("paper")


def test_what_the_language_model_stands_in_for():
    limits = {
        study: claims_ledger.stand_in(study, claims_ledger.planned_runs(study))
        for study in ("hippocampus", "busi", "paper")
    }
    assert limits == {
        "hippocampus": "SmolLM2-135M stands in for Llama-3.1-8B",
        "busi": "SmolLM2-135M stands in for Llama-3.2-1B",
        "paper": "the block is llama-3.1-8b's, as in the paper",
    }


def test_the_command_is_listed(capsys):
    with pytest.raises(SystemExit):
        main.main(["--help"])
    assert "claims" in capsys.readouterr().out
    contents = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    assert {"file": "claims"} in contents["parts"][0]["chapters"]


def test_a_claims_family_is_its_question_of_the_protocol():
    claim = next(claim for claim in LEDGER if claim.id == "v1_gain")
    empty = pd.DataFrame(columns=[*RUN_KEYS, "state", "run", "dice", "case"])

    def others(study: str) -> set[tuple[str, ...]]:
        plan = claims_ledger.planned_runs(study)
        evidence = claims_evidence.Evidence(study, plan, empty, empty, empty)
        return {found.systems for found in claims_tests.family(claim, evidence, "dice")}

    assert others("hippocampus2_tuned") == {("medvisionllama_v1", "medvisionllama_v1_noblock")}
    assert len(others("hippocampus")) > 1, "the chapter's contrasts, in the first study"


def test_pictures_of_the_second_protocol_are_judged_by_its_own_margin(tmp_path):
    claim = next(claim for claim in LEDGER if claim.id == "llm4seg_generalizable")
    evidence = {"isic": claims_ledger.read_evidence("isic", tmp_path)}
    judged = claims_ledger.entry_of(claim, evidence).claim
    assert (claim.margin, judged.margin) == (0.01, 0.004)
    assert judged.bound.protocol and "paper" in judged.bound.reason
    for study, metric in (("busi", "jaccard"), ("isic", "effective_rank")):
        other = replace(claim, metric=metric)
        assert claims_ledger.at_margin_of(study, other) is other


def test_the_fall_of_effective_rank_stands_beside_its_control():
    """The shuffled layer's rank falls as far, so that the fall is not owed to pretraining."""
    records = run_folder.records_dir()
    claim = next(claim for claim in LEDGER if claim.id == "llm4seg_effective_rank")
    verdict = claims_ledger.judge(claim, claims_ledger.read_evidence("isic", records))
    rows = pd.read_csv(records / "isic" / "activations.csv")
    ranks = rows.groupby(["system", "stage", "fold"])["effective_rank"].mean()
    folds = ranks["llm4seg_shuffled", "mapper2"] - ranks["cmunext", "bottleneck"]
    control = next(f for f in verdict.numbers if f.systems[0] == "llm4seg_shuffled")
    assert control.difference == pytest.approx(folds.mean()) and "Controls: " in verdict.sentence
