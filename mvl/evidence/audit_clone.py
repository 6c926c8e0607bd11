"""What can be checked mechanically in a clone of a paper's code: its text is read, by `ast` where
it is Python, and never executed.

Each check returns the places where the finding shows, `file:line` or a sentence; an empty list
means that this clone does not show it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path

MARKS = {"P1": "scripts/train.py", "P2": "network/llm4seg.py"}
"A file by which a clone is known."
TRAIN, BLOCK = "scripts/train.py", "src/models/medvisionllama.py"


def which_paper(clone: Path) -> str:
    """P1 or P2.

    Raises:
        FileNotFoundError: the folder is neither.
    """
    for paper, mark in MARKS.items():
        if (Path(clone) / mark).is_file():
            return paper
    raise FileNotFoundError(
        f"{clone}: neither {' nor '.join(MARKS.values())} is there; give a clone of"
        " MedVisionLlama's or LLM4Seg's code"
    )


def text(clone: Path, name: str) -> str:
    """A file's text; nothing where it is not there."""
    path = Path(clone) / name
    return path.read_text(errors="replace") if path.is_file() else ""


def places(clone: Path, name: str, pattern: str) -> list[str]:
    """`file:line` of each line that holds the pattern, comments left out."""
    lines = [line.split("#")[0] for line in text(clone, name).splitlines()]
    return [f"{name}:{number}" for number, line in enumerate(lines, 1) if re.search(pattern, line)]


def line_of(place: str) -> int:
    """The line of a place."""
    return int(place.rpartition(":")[2])


def python_files(clone: Path) -> list[str]:
    """Names of the clone's Python files."""
    return sorted(
        path.relative_to(clone).as_posix()
        for path in Path(clone).rglob("*.py")
        if ".git" not in path.parts
    )


def calls(clone: Path, name: str, attribute: str) -> list[ast.Call]:
    """Calls of a function or method of that name, in a file that parses."""
    try:
        tree = ast.parse(text(clone, name))
    except SyntaxError:
        return []
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [
        call
        for call in found
        if attribute in (getattr(call.func, "attr", None), getattr(call.func, "id", None))
    ]


def parse_errors(clone: Path) -> list[str]:
    """Files that are not valid Python."""
    out = []
    for name in python_files(clone):
        try:
            ast.parse(text(clone, name))
        except SyntaxError as error:
            out.append(f"{name}:{error.lineno} {error.msg}")
    return out


def missing_imports(clone: Path) -> list[str]:
    """`time`, `Path` and `lora` where they are used and not imported."""
    source = text(clone, BLOCK)
    out = []
    for word in ("time", "Path", "lora"):
        if re.search(rf"^(import|from) .*\b{word}\b", source, re.MULTILINE):
            continue
        out += [f"{place} {word}" for place in places(clone, BLOCK, rf"\b{word}[.(]")[:1]]
    return out


def fraction_words(clone: Path) -> list[str]:
    """README's fractions that the parser refuses."""
    choices = re.search(
        r"--dataset_fraction.*?choices=\[([^\]]*)\]", text(clone, "main.py"), re.DOTALL
    )
    told = re.findall(r"--dataset_fraction (\S+)", text(clone, "README.md"))
    return sorted(
        {
            f"README.md: {word}"
            for word in told
            if choices and word not in re.findall(r"'(\w+)'", choices.group(1))
        }
    )


def order_in_forward(clone: Path) -> list[str]:
    """The block, positions and ViT blocks where the block comes first."""
    found = [
        places(clone, BLOCK, pattern)
        for pattern in (r"self\.llm\(x", r"\+ self\.position_embed", r"in self\.attention_blocks")
    ]
    lines = [line_of(each[0]) for each in found if each]
    return [each[0] for each in found] if len(lines) == 3 and lines == sorted(lines) else []


def hard_dice(clone: Path) -> list[str]:
    """A threshold within the loss that is used."""
    used = places(clone, TRAIN, r"DiceBCELoss\(\)")
    return places(clone, "src/losses/losses.py", r"inputs > 0\.5\)\.float") if used else []


def rotation_axes(clone: Path) -> list[str]:
    """Rotations of image and label by the same axes, where the image alone has an axis put in
    front."""
    name = "src/data/datasets.py"
    turned = {
        ast.unparse(call.args[0]): (
            call.lineno,
            [ast.unparse(k.value) for k in call.keywords if k.arg == "axes"],
        )
        for call in calls(clone, name, "rotate")
        if call.args
    }
    axis = {
        ast.unparse(call.args[0]): call.lineno
        for call in calls(clone, name, "expand_dims")
        if call.args
    }
    same = len(turned) == 2 and len({str(axes) for _, axes in turned.values()}) == 1
    return (
        [
            f"{name}:{line}"
            for line in sorted([*axis.values(), *(line for line, _ in turned.values())])
        ]
        if same and list(axis) == ["img_x"]
        else []
    )


def copies_before_split(clone: Path) -> list[str]:
    """Versions put together before the last random split."""
    joined, split = (
        places(clone, TRAIN, r"ConcatDataset\("),
        places(clone, TRAIN, r"random_split\("),
    )
    return (
        [joined[-1], split[-1]]
        if joined and split and line_of(joined[-1]) < line_of(split[-1])
        else []
    )


def no_seed(clone: Path) -> list[str]:
    """A sentence when no file sets a seed."""
    seeded = [
        place
        for name in python_files(clone)
        for place in places(clone, name, r"manual_seed|random\.seed|set_seed")
    ]
    return [] if seeded else [f"no seed in {len(python_files(clone))} files"]


def one_test_volume(clone: Path) -> list[str]:
    """The one use of the test subset, when no loader takes it."""
    loader = places(clone, TRAIN, r"DataLoader\(test_dataset")
    return [] if loader else places(clone, TRAIN, r"test_dataset\[")


def loss_selects(clone: Path) -> list[str]:
    """The line that keeps a checkpoint by training loss."""
    return places(clone, TRAIN, r"epoch_loss < best_loss")


def all_distances(clone: Path) -> list[str]:
    """The line that asks for every distance."""
    return places(clone, "src/metrics/metrics.py", r"cdist\(")


def text_never_given(clone: Path) -> list[str]:
    """Where the language models wait for text, when training names none."""
    return (
        []
        if places(clone, TRAIN, "text_input_ids")
        else places(clone, "src/models/medvisionllama_variants.py", r"text_input_ids is not None")
    )


def shared_names(clone: Path) -> list[str]:
    """Names of results that hold neither model nor fraction."""
    found = places(clone, "src/utils/utils.py", r"base_name = ") + places(
        clone, TRAIN, r"_training_results"
    )
    return [
        place
        for place in found
        if not re.search(
            "model_label|fraction",
            text(clone, place.split(":")[0]).splitlines()[line_of(place) - 1],
        )
    ]


def layer_ignored(clone: Path) -> list[str]:
    """Where `--layer` is parsed and where a layer is written in, when nothing reads the option."""
    parsed, read = (
        places(clone, "main.py", r"[\"']--layer[\"']"),
        places(clone, "main.py", r"args\.layer"),
    )
    return parsed + places(clone, "network/CMUNeXt.py", r"layer=\d+") if parsed and not read else []


def no_mask_given(clone: Path) -> list[str]:
    """Calls of the layer without an attention mask."""
    found = calls(clone, "network/llm4seg.py", "llm")
    return [
        f"network/llm4seg.py:{call.lineno}"
        for call in found
        if "attention_mask" not in {k.arg for k in call.keywords}
    ]


def val_selects(clone: Path) -> list[str]:
    """The line that keeps a checkpoint by the reported score, when there is no third part of the
    data."""
    return (
        []
        if places(clone, "main.py", "test_file_dir")
        else places(clone, "main.py", r"val_iou'\]\.avg > best_iou")
    )


def random_split(clone: Path) -> list[str]:
    """A split by chance with a seed by chance."""
    return places(clone, "split.py", r"train_test_split\(.*random_state=random\.")


def frozen_control(clone: Path) -> list[str]:
    """README commands that initialise anew without training."""
    lines = enumerate(text(clone, "README.md").splitlines(), 1)
    return [
        f"README.md:{number}"
        for number, line in lines
        if "--need_init" in line and "--unfreeze" not in line
    ]


CHECKS: dict[str, Callable[[Path], list[str]]] = {
    check.__name__: check
    for check in (
        parse_errors,
        missing_imports,
        fraction_words,
        order_in_forward,
        hard_dice,
        rotation_axes,
        copies_before_split,
        no_seed,
        one_test_volume,
        loss_selects,
        all_distances,
        text_never_given,
        shared_names,
        layer_ignored,
        no_mask_given,
        val_selects,
        random_split,
        frozen_control,
    )
}
