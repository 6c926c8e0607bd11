"""The study that the tests send to a cluster, and what it must end with there."""

from pathlib import Path

from mvl.core import run_folder
from mvl.study import grid, launch
from mvl.study.inline import Launch

STUDY = """title: Four small runs
tasks: [phantoms]
grid:
  - {name: main, systems: [vit_baseline], fractions: [0.3], folds: [0, 1], seeds: [0, 1]}
data: {img_size: [24, 24, 24]}
model: {patch_size: [8, 8, 8], encoder_layers: 1, decoder_layers: 1, dropout_rate: 0.0}
train: {train_epochs: 2, batch_size: 4, lr: 0.002}
"""


def assert_same_as_inline(study: str, queued: Path, inline: Path) -> None:
    """Run the study inline too: the same settings, weights, history and scores; on the cluster one
    run, cut off, went on from its checkpoint."""
    assert launch.run_study(study, inline, launch=Launch(engine="inline")) == 0
    logs = [path.read_text() for path in (queued / "four" / "logs").rglob("*.log")]
    assert len(logs) == 4 and sum("going on from here" in text for text in logs) == 1, (
        "only the run that was cut off went on from a checkpoint"
    )
    for config in grid.study_runs(study):
        ours, theirs = (
            run_folder.read_status(run_folder.run_dir(folder, config))["files"]
            for folder in (queued, inline)
        )
        assert {n: h for n, h in ours.items() if n != "environment.json"} == {
            n: h for n, h in theirs.items() if n != "environment.json"
        }
