"""The plan in the book is the recorded one, and the record is what the planner says now."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mvl.bench import plan
from mvl.core.config import ROOT
from mvl.publish import plan_page


def test_the_record_is_what_the_planner_says() -> None:
    made = json.loads(plan_page.RECORD.read_text())
    assert made["command"] == "mvl plan paper --epochs 200 --every-system" and tuple(
        made["plans"]
    ) == tuple(sorted(plan_page.SHOWN))
    known, configs = ("vit_baseline", "medvisionllama_v3"), plan.chosen("paper", 200, True)
    some = [config for config in configs if config.system in known]
    for device, value in made["plans"].items():
        now = plan.price(some, plan.find_device(device), data_dir=ROOT / "book")
        rows = {row["system"]: row for row in value["systems"]}
        assert [rows[row["system"]] for row in now["systems"]] == [
            pytest.approx(row) for row in now["systems"]
        ]
        assert value["runs"] == len(configs) and set(rows) == {
            config.system for config in configs
        }, "record the plan anew"
        assert not set(plan_page.HERE) & set(value) and value["downloads"] == now["downloads"]


def test_the_page_is_the_record(tmp_path: Path) -> None:
    shown, made = plan_page.page(), json.loads(plan_page.RECORD.read_text())
    assert (
        shown["plan"].count("\n") == 1 + len(made["plans"])
        and shown["plan_command"] == made["command"]
    )
    assert (
        shown["plan_systems"].count("\n| `")
        == len(made["plans"]["h100"]["systems"])
        == int(shown["plan_arms"])
    )
    with pytest.raises(plan.PlanError, match="none.json: no plan is recorded; run `mvl plan"):
        plan_page.page(tmp_path / "none.json")


def test_a_small_study_is_recorded(tmp_path: Path) -> None:
    plan_page.record("quick", 7, path=tmp_path / "plan.json")
    made = json.loads((tmp_path / "plan.json").read_text())
    assert made["command"] == "mvl plan quick --epochs 7" and made["plans"]["t4"]["epochs"] == [7]
    assert made["plans"]["8xh100"]["wall_hours"] == pytest.approx(
        made["plans"]["h100"]["hours"] / 8
    )
