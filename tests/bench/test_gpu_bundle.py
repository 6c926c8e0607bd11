"""The bundle brings what a bare machine lacks, and its language layers are those of the whole file,
bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from mvl.bench import gpu_bundle
from mvl.core.config import ROOT, load_config
from mvl.models.build import build_system, frozen_sha256
from mvl.weights import families, sources
from mvl.weights.wheels import has_layers_alone, layers_folder, source_files


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """A folder with one wheel, whose module says that it was imported from the bundle."""
    folder = tmp_path / "given"
    folder.mkdir()
    with zipfile.ZipFile(folder / "brought-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("brought.py", "place = __file__")
    return folder


def test_the_layers_of_studies_are_found_by_source() -> None:
    found = gpu_bundle.layers_of(["smoke", "hippocampus"])
    assert (
        set(found) == {"smollm2-135m", "minilm-l6"}
        and {0, 14, 29} <= set(found["smollm2-135m"])
        and found["minilm-l6"] == [5]
    )
    assert gpu_bundle.layers_of(["audit"]) == {}


@pytest.mark.parametrize(
    ("system", "source", "layer"),
    [("medvisionllama_v3", "smollm2-135m", 29), ("medvisionllama_v3_minilm", "minilm-l6", 5)],
)
def test_layers_alone_are_the_whole_files(
    system: str, source: str, layer: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same frozen sha256, also of the kinds that are drawn, on a machine that has the layers
    alone."""
    config = load_config("smoke", "phantoms", system)
    drawn = replace(
        config,
        model=replace(config.model, token_block=replace(config.model.token_block, kind="random")),
    )
    wanted = [frozen_sha256(build_system(one, 1, 1)) for one in (config, drawn)]
    gpu_bundle.write_layers(source, [layer], tmp_path / f"{source}-layers")
    monkeypatch.setenv("MVL_WEIGHTS", str(tmp_path))
    assert has_layers_alone(source)
    assert [frozen_sha256(build_system(one, 1, 1)) for one in (config, drawn)] == wanted
    with pytest.raises(families.SourceError):
        sources.load_layer(source, 1)


def test_the_whole_file_goes_before_its_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MVL_WEIGHTS", str(tmp_path))
    folder = layers_folder("smollm2-135m")
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert has_layers_alone("smollm2-135m") and not has_layers_alone("minilm-l6")
    next(iter(source_files("smollm2-135m"))).touch()
    assert not has_layers_alone("smollm2-135m")


def test_a_bundle_is_whole_and_its_script_runs_from_anywhere(
    tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data" / "Task04_Hippocampus"
    data.mkdir(parents=True)
    (data / "dataset.json").write_text("{}")
    monkeypatch.setenv("MVL_DATA", str(data.parent))
    monkeypatch.setattr(gpu_bundle, "open_task", lambda task: SimpleNamespace(folder=data))
    made = gpu_bundle.make_bundle(
        tmp_path / "out" / "bundle.tar.xz", "Task04_Hippocampus", ["audit"], wheels
    )
    place = tmp_path / "machine"
    place.mkdir()
    with tarfile.open(made) as archive:
        archive.extractall(place, filter="data")
    assert (place / "data" / "Task04_Hippocampus" / "dataset.json").is_file() and (
        place / "tree" / "Snakefile"
    ).is_file()
    assert not (place / "tree" / "data" / "scans").exists()
    assert (
        not (place / "tree" / "book" / "_vendor").exists()
        and not (place / "tree" / ".git").exists()
    )
    code = (
        "import brought, mvl.core.machine; print(brought.place,"
        " mvl.core.machine.environment()['mvl'])"
    )
    script = (place / "run.sh").read_text().replace("-m mvl.bench.gpu_checks", f'-c "{code}"')
    (place / "run.sh").write_text(script)
    done = subprocess.run(
        ["sh", str(place / "run.sh")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": "", "PYTHON": sys.executable},
    )
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert done.stdout.startswith(str(place / "site" / "brought.py")) and commit in done.stdout


def test_a_bundle_that_is_too_large_leaves_no_file(
    tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data" / "x"
    data.mkdir(parents=True)
    monkeypatch.setattr(gpu_bundle, "open_task", lambda task: SimpleNamespace(folder=data))
    monkeypatch.setattr(gpu_bundle, "copy_tree", lambda folder: folder.mkdir())
    monkeypatch.setattr(gpu_bundle, "layers_of", lambda studies: {})
    monkeypatch.setattr(gpu_bundle, "LARGEST", 10)
    with pytest.raises(gpu_bundle.BundleError, match="more than 0; pack a smaller task"):
        gpu_bundle.make_bundle(tmp_path / "bundle.tar.xz", "phantoms", [], wheels)
    assert not (tmp_path / "bundle.tar.xz").exists()


def test_only_wheels_for_every_machine_go_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(words: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        folder = Path(words[words.index("--dest") + 1])
        folder.mkdir(exist_ok=True)
        (folder / name).touch()
        assert {word.split("==")[0] for word in words if "==" in word} == set(gpu_bundle.WHEELS)
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(gpu_bundle.subprocess, "run", download)
    name = "monai-1-py3-none-any.whl"
    gpu_bundle.download_wheels(tmp_path)
    name = "numpy-2-cp312-cp312-manylinux_2_28_x86_64.whl"
    with pytest.raises(gpu_bundle.BundleError, match="not for every machine"):
        gpu_bundle.download_wheels(tmp_path)
