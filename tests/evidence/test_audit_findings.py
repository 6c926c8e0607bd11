"""The audit's findings are whole, its table is computed from records, and holes are shown."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from mvl.core import files, run_folder
from mvl.evidence import audit_findings
from mvl.publish import audit_page
from mvl.study.grid import study_runs
from tests.finished_run import write_run


def record(results: Path, arm: audit_findings.Arm, fold: int, dice: float, watched: float) -> None:
    """A done run with three test cases."""
    scores = {"dice_resized": dice}
    cases = [scores | {"case": f"case_{fold}{k}", "dice": dice + k / 100} for k in range(3)]
    write_run(results, audit_findings.arm_configs(arm)[fold], cases, best_dice=watched)


def arm(system: str) -> audit_findings.Arm:
    """The arm of that name."""
    return next(each for each in audit_findings.ARMS if each.system == system)


def test_every_finding_is_whole_and_in_a_known_commit() -> None:
    found = audit_findings.load_findings()
    commits = {
        paper: facts["commit"] for paper, facts in audit_findings.read_findings()["papers"].items()
    }
    assert len(found) >= 20 and {f.paper for f in found} == set(commits)
    for finding in found:
        assert finding.title and finding.where and finding.does and finding.consequence
        assert (
            finding.command.startswith("git ") and commits[finding.paper][:7] in finding.command
        ), finding.id
    wanted = {
        "does-not-parse",
        "place-of-the-block",
        "dice-without-gradient",
        "rotation-planes",
        "copies-across-the-split",
        "one-test-volume",
        "training-loss-selects",
        "surface-memory",
        "medical-models",
        "layer-ignored",
        "causal-by-default",
        "duplicates",
        "thirty-percent-above-all",
        "examples-against-means",
    }
    assert wanted <= {finding.id for finding in found}


@pytest.mark.parametrize(
    ("line", "message"),
    [('known = "hearsay"', "hearsay"), ('measure = "nothing"', "nothing"), ('odd = "x"', "odd")],
)
def test_a_wrong_entry_is_named(tmp_path: Path, line: str, message: str) -> None:
    text = audit_findings.FINDINGS.read_text()
    start = text.index("[[finding]]")
    entry = text[start : text.index("[[finding]]", start + 1)].replace(
        'known = "run"', "" if "known" in line else 'known = "run"'
    )
    (tmp_path / "audit.toml").write_text(f"{text[:start]}{entry}{line}\n")
    with pytest.raises(audit_findings.AuditError, match=message):
        audit_findings.load_findings(tmp_path / "audit.toml")


def test_every_arm_of_the_study_is_in_the_table() -> None:
    planned = {run_folder.run_name(config) for config in study_runs("audit")}
    assert planned == {
        run_folder.run_name(config)
        for each in audit_findings.ARMS
        if each.study == "audit"
        for config in audit_findings.arm_configs(each)
    }


def test_without_records_the_table_is_all_holes(tmp_path: Path) -> None:
    rows = audit_findings.worth(tmp_path)
    assert (
        len(rows) == len(audit_findings.ARMS)
        and set(rows["done"]) == {0}
        and rows["dice"].isna().all()
    )
    assert audit_page.worth_table(tmp_path).count("0 of 3") == len(
        audit_findings.ARMS
    ) and "not yet recorded" in audit_page.worth_table(tmp_path)


def test_the_table_is_computed_from_the_records(tmp_path: Path) -> None:
    for fold in range(3):
        record(tmp_path, arm("vit_baseline"), fold, 0.80, 0.81)
        record(tmp_path, arm("audit_control"), fold, 0.79, 0.80)
        record(tmp_path, arm("audit_leak"), fold, 0.75, 0.90)
    record(tmp_path, arm("audit_loss"), 0, 0.70, 0.70)
    rows = audit_findings.worth(tmp_path).set_index("system")
    leak, loss = rows.loc["audit_leak"], rows.loc["audit_loss"]
    assert (
        leak["gap"] == pytest.approx(0.15)
        and leak["difference"] == pytest.approx(-0.04)
        and (leak["n_cases"], leak["n_runs"]) == (9, 3)
    )
    assert leak["dice"] == pytest.approx(0.76) and leak["resized"] == pytest.approx(0.75)
    assert audit_findings.answer(tmp_path) == "", "nothing is said while runs are missing"
    assert (
        loss["difference"] == pytest.approx(-0.10) and loss["done"] == 1 and math.isnan(loss["p"])
    )
    table = audit_page.worth_table(tmp_path)
    assert (
        "-4.00 [-4.00, -4.00] to `audit_control`; n = 9 cases of 3 folds" in table
        and "one fold, no p" in table
        and "1 of 3" in table
    )


def test_the_answer_names_the_worst_of_the_faults(tmp_path: Path) -> None:
    for one in audit_findings.ARMS:
        dice, says = {
            "audit_leak": (0.80, 0.95),
            "audit_planes": (0.60, 0.60),
            audit_findings.CONTROL: (0.80, 0.99),
        }.get(one.system, (0.80, 0.81))
        for fold in range(3):
            record(tmp_path, one, fold, dice, says)
    text = audit_findings.answer(tmp_path)
    assert "*copies on both sides of the split*: the reported Dice is +15.0 points" in text
    assert "*label turned in another plane*: -20.0 points on test cases [-20.0, -20.0]" in text


def test_a_clean_arm_with_other_settings_is_a_hole(tmp_path: Path) -> None:
    record(tmp_path, arm("vit_baseline"), 0, 0.80, 0.81)
    path = (
        run_folder.run_dir(tmp_path, audit_findings.arm_configs(arm("vit_baseline"))[0])
        / "config.yaml"
    )
    path.write_text(path.read_text().replace("lr: ", "lr: 0.5 # "))
    status = json.loads((path.parent / "status.json").read_text())
    status["files"]["config.yaml"] = files.sha256_file(path)
    files.write_json(path.parent / "status.json", status)
    assert audit_findings.worth(tmp_path)["done"].tolist()[0] == 0


def test_the_page_has_every_finding_and_says_what_rests_on_a_reading(tmp_path: Path) -> None:
    facts = audit_page.facts(["hippocampus"], tmp_path, "https://example.org/mvl")
    text = "".join(facts["audit_pages"].values())
    for finding in audit_findings.load_findings():
        assert finding.title in text and finding.command in text
    assert (
        text.count("rests on a reading") == facts["audit_known"]["reading"] > 0
        and "REPOSITORY" not in text
    )
    assert (
        sum(facts["audit_known"].values()) == facts["audit_count"]
        and "0 of 3" in facts["audit_worth"]
    )
    assert "published book" in audit_page.facts(["quick"], tmp_path, "x")["audit_worth"]


def test_the_terminal_shows_findings_table_and_clone(tmp_path: Path) -> None:
    for name, words in {
        "scripts/train.py": "if epoch_loss < best_loss:\n    keep()\n",
        "src/models/medvisionllama.py": "print(1\n",
    }.items():
        (tmp_path / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clone" / name).write_text(words)
    found = audit_findings.report(tmp_path / "clone", tmp_path)
    said = audit_findings.report_as_text(found)
    assert (
        "P2 layer-ignored" in said
        and "shown     does-not-parse: src/models/medvisionllama.py:1" in said
    )
    assert (
        "shown     training-loss-selects: scripts/train.py:1" in said
        and "NOT shown surface-memory" in said
    )
    assert json.loads(json.dumps(found, allow_nan=False))["worth"][0]["dice"] is None
