"""`make gpu-pack`: one archive with all that a bare GPU machine lacks, for `make gpu` without git,
package index or network.

The machine has Python, torch, transformers, accelerate, peft, safetensors, jaxtyping, scipy,
pandas and seaborn. The archive brings the tree, wheels of the other packages, the language layers
that the studies ask for, and one data set.

    mkdir mvl-gpu && tar -xJf mvl-gpu.tar.xz -C mvl-gpu && sh mvl-gpu/run.sh --minutes 12
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from mvl.core import files, machine
from mvl.core.block_config import LAYER_KINDS
from mvl.core.config import ROOT
from mvl.core.errors import MvlError
from mvl.datasets.task_data import open_task
from mvl.study.grid import study_runs
from mvl.weights import sources
from mvl.weights.wheels import SOURCES, layers_folder

WHEELS = ("monai", "nibabel", "gguf", "einops")
"Packages of pyproject.toml that such a machine lacks; they have no part that is compiled."
LEFT_OUT = ("book/_vendor/", "tests/_vendor/", "data/scans/")
"Parts of the tree that only pages and their tests need, and the scans of `quick`."
LARGEST = 60_000_000
"Bytes of a bundle at most."
SCRIPT = """#!/bin/sh
# Sets up what lies beside this script, without any network, and shows what a GPU must show. Words
# go to `python -m mvl.bench.gpu_checks`.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
export PIP_NO_INDEX=1 HF_HUB_OFFLINE=1 MPLBACKEND=agg
export MVL_DATA="$here/data" MVL_WEIGHTS="$here/weights"
export PYTHONPATH="$here/tree:$here/site${PYTHONPATH:+:$PYTHONPATH}"
if [ ! -d "$here/site" ]; then
    mkdir "$here/site.part"
    for wheel in "$here"/wheels/*.whl; do "$python" -m zipfile -e "$wheel" "$here/site.part"; done
    mv "$here/site.part" "$here/site"
fi
cd "$here/tree"
exec "$python" -m mvl.bench.gpu_checks "$@"
"""


class BundleError(MvlError, RuntimeError):
    """A bundle cannot be made; the message names the remedy."""


def make_bundle(
    target: Path, task: str, studies: Sequence[str], wheels: Path | None = None
) -> Path:
    """Write the archive, whole or not at all; returns its path. `wheels`: a folder that holds them
    already.

    Raises:
        BundleError: pip could not download a wheel, or the archive is too large.
        TaskError: the task's data are not here.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        copy_tree(folder / "tree")
        if wheels is None:
            download_wheels(folder / "wheels")
        else:
            shutil.copytree(wheels, folder / "wheels")
        (folder / "weights").mkdir()
        for source, layers in layers_of(studies).items():
            write_layers(source, layers, folder / "weights" / layers_folder(source).name)
        found = open_task(task).folder
        shutil.copytree(found, folder / "data" / found.name)
        (folder / "run.sh").write_text(SCRIPT)
        packed = folder / "bundle.tar.xz"
        with tarfile.open(packed, "w:xz") as archive:
            for name in ("run.sh", "tree", "wheels", "weights", "data"):
                archive.add(folder / name, name)
        size = packed.stat().st_size
        if size > LARGEST:
            raise BundleError(
                f"the bundle of {task} has {size / 1e6:.0f} MB, more than {LARGEST / 1e6:.0f}; pack"
                " a smaller task or fewer studies"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(packed, target)
    return target


def copy_tree(folder: Path) -> None:
    """The files that git has, or would have, of this tree, and the commit that they are of."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in listed:
        source = ROOT / name
        if source.is_file() and not name.startswith(LEFT_OUT):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, folder / name)
    files.write_json(folder / "commit.json", machine.environment()["mvl"])


def download_wheels(folder: Path) -> None:
    """Wheels of the missing packages, of the pinned versions, that run on any machine.

    Raises:
        BundleError: pip could not download one.
    """
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    named = [f"{name}=={pins[name]}" for name in WHEELS]
    words = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(folder),
        *named,
    ]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise BundleError(
            f"pip could not download {', '.join(named)}: {done.stderr.strip()[-300:]}"
        )
    compiled = [
        path.name for path in folder.glob("*.whl") if not path.name.endswith("-none-any.whl")
    ]
    if compiled:
        raise BundleError(
            f"{', '.join(compiled)}: not for every machine; leave it to the machine's own packages"
        )


def layers_of(studies: Sequence[str]) -> dict[str, list[int]]:
    """Named source -> layers that the studies' systems ask for."""
    found: dict[str, list[int]] = {}
    for study in studies:
        for config in study_runs(study):
            block = config.model.token_block
            hybrid = config.model.architecture.startswith(("medvisionllama", "llm4seg"))
            if hybrid and block.source in SOURCES and block.kind in LAYER_KINDS:
                count = sources.load_config(block.source).num_hidden_layers
                layers = found.setdefault(block.source, [])
                if block.layer % count not in layers:
                    layers.append(block.layer % count)
    return found


def write_layers(source: str, layers: list[int], folder: Path) -> None:
    """Some layers of a named source as a small checkpoint: the same values, in the dtype in which
    they are used."""
    from safetensors.torch import save_file

    from mvl.weights.families import family_of

    config = sources.load_config(source)
    family = family_of(config)
    tensors: dict[str, Tensor] = {}
    for layer in layers:
        weights = sources.load_layer(source, layer)
        place = f"{family.layers}.{layer}".replace("\\.", ".")
        tensors |= {f"{place}.{name}": value.contiguous() for name, value in weights.layer.items()}
        tensors |= {
            f"{family.norm}.{name}": value.contiguous()
            for name, value in weights.final_norm.items()
        }
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    files.write_json(folder / "config.json", json.loads(config.to_json_string(use_diff=False)))


def main(argv: Sequence[str] | None = None) -> int:
    """Make the bundle and print where it is, how large, and how it is used."""
    parser = argparse.ArgumentParser(
        "python -m mvl.bench.gpu_bundle",
        description="one archive for `make gpu` on a machine without network",
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "data" / "runs" / "mvl-gpu.tar.xz", metavar="FILE"
    )
    parser.add_argument(
        "--task",
        default="Task04_Hippocampus",
        metavar="T",
        help="the data set that goes in (default: %(default)s)",
    )
    parser.add_argument(
        "--studies",
        nargs="+",
        default=["smoke", "hippocampus"],
        metavar="S",
        help="whose language layers go in",
    )
    parser.add_argument(
        "--wheels",
        type=Path,
        metavar="D",
        help="a folder of the wheels, where no index can be asked",
    )
    args = parser.parse_args(argv)
    made = make_bundle(args.out, args.task, args.studies, args.wheels)
    place = os.path.relpath(made)
    print(f"{place}: {made.stat().st_size / 1e6:.1f} MB. On the machine:")
    print(f"mkdir mvl-gpu && tar -xJf {made.name} -C mvl-gpu && sh mvl-gpu/run.sh --minutes 12")
    return 0


if __name__ == "__main__":
    sys.exit(main())
