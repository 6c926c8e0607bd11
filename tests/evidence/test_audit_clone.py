"""Each check finds its fault in a few lines that have it, and nothing in lines that have not. The
lines are ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from mvl.evidence import audit_clone

FAULTS = {
    "scripts/train.py": (
        """loss = DiceBCELoss()
first = [test_dataset[0]]
pool = ConcatDataset(parts)
a, b = random_split(pool, sizes)
if epoch_loss < best_loss:
    keep()
csv = f"{task}_training_results.csv"
"""
    ),
    "src/models/medvisionllama.py": (
        """import torch
start = time.time()
files = Path(folder)
print("opened"
x = lora.Linear(1, 2)
x = self.llm(x) + x
x = x + self.position_embed
for block in self.attention_blocks:
    x = block(x)
"""
    ),
    "src/models/medvisionllama_variants.py": "if text_input_ids is not None:\n    pass\n",
    "src/losses/losses.py": "hard = (inputs > 0.5).float()\n",
    "src/data/datasets.py": (
        "img_x = np.expand_dims(img_x, 0)\na = rotate(img_x, angle, axes=(1, 2))\nb = rotate(img_y,"
        " angle, axes=(1, 2))\n"
    ),
    "src/metrics/metrics.py": "d = torch.cdist(a, b)\n",
    "src/utils/utils.py": 'base_name = f"{task}_{lr}"\n',
    "main.py": "p.add_argument('--dataset_fraction', choices=['full', 'ten'])\n",
    "README.md": "python main.py --dataset_fraction 0.1\n",
}
OTHERS = {
    "network/llm4seg.py": "x = self.llm(hidden_states=x, position_embeddings=p)\n",
    "network/CMUNeXt.py": "m = LLM4Seg(layer=14)\n",
    "main.py": "p.add_argument(\"--layer\")\nif meters['val_iou'].avg > best_iou:\n    keep()\n",
    "split.py": "a, b = train_test_split(ids, random_state=random.randint(0, 9))\n",
    "README.md": "python main.py --need_init\n",
}
OF_P2 = ("layer_ignored", "no_mask_given", "val_selects", "random_split", "frozen_control")
CURED = {
    "scripts/train.py": (
        "torch.manual_seed(0)\nDataLoader(test_dataset)\na, b = random_split(cases, n)\nc ="
        " ConcatDataset(a)\nmodel(x, text_input_ids=t)\ncsv ="
        ' f"{model_label}_training_results.csv"\n'
    ),
    "src/models/medvisionllama.py": (
        "import time\nfrom pathlib import Path\nimport loralib as lora\nx = x +"
        " self.position_embed\nfor block in self.attention_blocks:\n    x = block(x)\nx ="
        " self.llm(x) + x\n"
    ),
    "src/models/medvisionllama_variants.py": "if text_input_ids is not None:\n    pass\n",
    "src/losses/losses.py": "soft = inputs\n",
    "src/data/datasets.py": (
        "img_x = np.expand_dims(img_x, 0)\na = rotate(img_x, angle, axes=(2, 3))\nb = rotate(img_y,"
        " angle, axes=(1, 2))\n"
    ),
    "src/metrics/metrics.py": "d = tree(a).query(b)\n",
    "src/utils/utils.py": 'base_name = f"{task}_{model_label}"\n',
    "main.py": "p.add_argument('--dataset_fraction', choices=['full', 'ten'])\n",
    "README.md": "python main.py --dataset_fraction ten\n",
    "network/llm4seg.py": "x = self.llm(hidden_states=x, attention_mask=mask)\n",
    "split.py": "a, b = train_test_split(ids, random_state=0)\n",
}


def clone(folder: Path, files: dict[str, str]) -> Path:
    """A folder that looks like a clone."""
    for name, words in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(words)
    return folder


@pytest.mark.parametrize("name", sorted(audit_clone.CHECKS))
def test_a_check_finds_its_fault_and_no_other_where_it_is_cured(name: str, tmp_path: Path) -> None:
    faulty = clone(tmp_path / "faulty", OTHERS if name in OF_P2 else FAULTS)
    assert audit_clone.CHECKS[name](faulty)
    assert audit_clone.CHECKS[name](clone(tmp_path / "cured", CURED)) == []


def test_places_are_file_and_line_without_comments(tmp_path: Path) -> None:
    folder = clone(tmp_path, {"a.py": "x = 1  # cdist(\ny = cdist(1)\n"})
    assert (
        audit_clone.places(folder, "a.py", r"cdist\(") == ["a.py:2"]
        and audit_clone.line_of("a.py:2") == 2
    )
    assert audit_clone.places(folder, "b.py", "x") == []


def test_a_clone_is_known_by_its_files(tmp_path: Path) -> None:
    assert (
        audit_clone.which_paper(clone(tmp_path / "one", FAULTS)) == "P1"
        and audit_clone.which_paper(clone(tmp_path / "two", OTHERS)) == "P2"
    )
    with pytest.raises(FileNotFoundError, match="give a clone of"):
        audit_clone.which_paper(tmp_path)


def test_a_clone_is_never_executed(tmp_path: Path) -> None:
    trap = {
        name: f"{words}\nopen({str(tmp_path / 'ran')!r}, 'w')\n"
        for name, words in FAULTS.items()
        if name.endswith(".py")
    }
    for check in audit_clone.CHECKS.values():
        check(clone(tmp_path / "clone", trap))
    assert not (tmp_path / "ran").exists()
