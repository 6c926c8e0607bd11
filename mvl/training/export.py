"""Write a trained run as a folder in the hub's layout: weights, description, card, and the network
as ONNX, which is checked against PyTorch before the folder has its name."""

from __future__ import annotations

import logging
import shutil
import uuid
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import mvl
from mvl.core import files, run_folder
from mvl.core.block_config import LAYER_KINDS
from mvl.core.command_lines import command_of
from mvl.core.config import Config, to_dict
from mvl.core.errors import MvlError
from mvl.core.extras import lacking
from mvl.core.shapes import Image
from mvl.core.stopping import stoppable
from mvl.datasets.case_store import open_test_cases
from mvl.datasets.registry import find_task, task_of_run
from mvl.datasets.task import Task, UnknownTask
from mvl.models.build import frozen_sha256, guiding_words, own_state
from mvl.models.exported import CARD, CONFIG, MODEL_TYPE, ONNX, WEIGHTS, load_exported
from mvl.training import checkpoints, export_card
from mvl.training.evaluate import label_names
from mvl.training.objective import num_classes
from mvl.training.trained import load_run
from mvl.training.usage import has_block

LARGEST = 1e-4
"Largest difference of a logit between onnxruntime and PyTorch, both in float32 on the CPU."


class ExportError(MvlError, RuntimeError):
    """A run cannot be exported; the message says why and names the remedy."""


def export_run(
    run_dir: Path, folder: Path, with_onnx: bool = True, data_dir: Path | None = None
) -> dict[str, Any]:
    """Write a finished run into `folder` and read it back: {folder, files, onnx_difference, note}.

    The folder appears whole or not at all. The ONNX file needs the run's test data, for it is
    checked on a real case. It is left out where it would hold a layer whose licence has terms of
    its own; the note says so.

    Raises:
        ExportError: the run is not done, the folder is there already, packages are missing, or the
            ONNX file does not compute what PyTorch does.
    """
    status = run_folder.read_status(run_dir)
    if status["state"] != "done":
        raise ExportError(
            f"{run_dir} is not a finished run (state {status['state']}); finish it with"
            f" `{command_of(run_dir)}`"
        )
    if folder.exists():
        raise ExportError(f"{folder}: is there already and stays; choose another folder")
    config = run_folder.read_config(run_dir)
    task = with_citation(task_of_run(config, status, data_dir), data_dir)
    torch.set_num_threads(config.train.num_threads)
    network = load_run(run_dir)
    licence, layer = layer_words(config)
    why_not = reason_without_onnx(with_onnx, licence)
    image = None if why_not else open_test_cases(config, data_dir).get(0)[0][None]

    partial = folder.with_name(f"{folder.name}.partial-{uuid.uuid4().hex}")
    try:
        with stoppable():
            partial.mkdir(parents=True)
            checkpoints.save_weights(partial / WEIGHTS, own_state(network))
            files.write_json(partial / CONFIG, description(config, task, network))
            largest = None if image is None else write_onnx(network, image, partial / ONNX)
            words = export_card.onnx_words(largest, why_not)
            text = export_card.card(run_dir, config, task, status, layer, words)
            files.atomic_write(partial / CARD, text)
            check_read_back(network, partial, image)
            files.swap(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return {
        "folder": str(folder),
        "files": sorted(path.name for path in folder.iterdir()),
        "onnx_difference": largest,
        "note": f"no {ONNX}: {why_not}" if why_not else "",
    }


def with_citation(task: Task, data_dir: Path | None) -> Task:
    """The task with what its authors ask to cite, which a run's record does not keep."""
    try:
        return replace(task, citation=find_task(task.name, data_dir).citation)
    except UnknownTask:
        return task


def description(config: Config, task: Task, network: nn.Module) -> dict[str, Any]:
    """What `config.json` holds: all that `load_exported` needs to build the network again."""
    block = config.model.token_block
    if block.text_guidance:
        # the words of your own task are known here, and not where the folder is read
        block = replace(block, words=guiding_words(config))
        config = replace(config, model=replace(config.model, token_block=block))
    return {
        "model_type": MODEL_TYPE,
        "mvl_version": mvl.__version__,
        "channels": list(task.channels),
        "classes": list(label_names(config, task)),
        "num_classes": num_classes(config, task),
        "frozen_sha256": frozen_sha256(network),
        "config": to_dict(config),
    }


def layer_words(config: Config) -> tuple[str, str]:
    """The licence under which a copy of the network's frozen layer may be passed on (empty: no
    layer of a language model is in it), and the card's sentence on it."""
    from mvl.weights.hub import load_sources
    from mvl.weights.wheels import SOURCES

    block = config.model.token_block
    if not has_block(config) or block.kind not in LAYER_KINDS:
        return "", "the network holds no layer of a language model."
    if block.kind == "random":
        return "", f"drawn at random at the sizes of `{block.source}`; it holds nothing pretrained."
    known: dict[str, Any] = {**load_sources(), **SOURCES}
    licence = known[block.source].licence if block.source in known else "not known"
    return licence, (
        f"layer {block.layer} of `{block.source}` (kind {block.kind}), licence {licence}. Its"
        f" weights are not in `{WEIGHTS}`: `load_exported` fetches them from where their owners"
        f" publish them and checks that they are the same. `{ONNX}`, where it is here, holds them,"
        " and passing it on is passing them on."
    )


def reason_without_onnx(asked: bool, licence: str) -> str:
    """Why no ONNX file is written; empty where one is.

    Raises:
        ExportError: it is asked for and its packages are missing.
    """
    if not asked:
        return "it was not asked for"
    if licence and licence not in export_card.OPEN:
        return (
            f"it would hold the frozen layer, whose licence ({licence}) has terms of its own for"
            " copies"
        )
    for module in ("onnx", "onnxruntime", "onnxscript"):
        try:
            __import__(module)
        except ImportError as error:
            raise ExportError(f"{lacking(module)}, or leave {ONNX} out with --no-onnx") from error
    return ""


def write_onnx(network: nn.Module, image: Image, path: Path) -> float:
    """Write a network as ONNX and return its largest difference to PyTorch on the image.

    Raises:
        ExportError: it cannot be written, or computes something else.
    """
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it lists packages that nothing needs
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network,
                (image,),
                input_names=["image"],
                output_names=["logits"],
                dynamo=True,
                verbose=False,
            )
            assert program is not None
            program.save(str(path))
    except Exception as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ExportError(
            f"the network cannot be written as ONNX ({reason}); leave it out with --no-onnx"
        ) from error
    with torch.inference_mode():
        wanted = network(image).numpy()
    largest = float(np.abs(run_onnx(path, image) - wanted).max())
    if not largest <= LARGEST:  # so written that nan is refused too
        raise ExportError(
            f"{ONNX} does not compute what PyTorch does: the logits of a test case differ by"
            f" {largest:.1e}, more than {LARGEST:.0e}; nothing was written. Leave it out with"
            " --no-onnx"
        )
    return largest


def run_onnx(path: Path, image: Image) -> np.ndarray:
    """The logits that onnxruntime computes on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    [logits] = session.run(["logits"], {"image": image.numpy()})
    return logits


def export_as_text(value: dict[str, Any]) -> str:
    """What the command prints: the note, if there is one, and the folder last."""
    return "\n".join(filter(None, (value["note"], value["folder"])))


def check_read_back(network: nn.Module, folder: Path, image: Image | None) -> None:
    """Nothing where the folder gives the network back.

    Raises:
        ExportError: a tensor or a logit of the network that was read back differs.
    """
    again = load_exported(folder)
    mine, read = network.state_dict(), again.state_dict()
    same = mine.keys() == read.keys() and all(torch.equal(mine[k], read[k]) for k in mine)
    if image is not None:
        with torch.inference_mode():
            same = same and torch.equal(network(image), again(image))
    if not same:
        raise ExportError("the written folder does not give the same network back")
