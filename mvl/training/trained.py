"""A trained network as everything but training uses it: on the device and in the precision that
training had."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from mvl.core import files, run_folder
from mvl.core.config import Config
from mvl.core.shapes import Image, Logits
from mvl.datasets.registry import task_of_run
from mvl.models.build import build_system, own_state
from mvl.training import checkpoints, precision
from mvl.training.devices import device_of_runs, repeat_exactly
from mvl.training.objective import num_classes

MOST_CASES, MOST_VOXELS = 32, 2**22
"Cases and voxels of images that are predicted at once."


class Predictor:
    """A network with its device and precision; every prediction of the package is made by one."""

    def __init__(
        self, network: nn.Module, config: Config, device: torch.device | None = None
    ) -> None:
        """Bring the network to `device`, by default the one that runs train on, for prediction.

        Raises:
            RunError: the device does not have the run's precision.
        """
        self.device = device or device_of_runs()
        self.config, self.precision = config, config.train.precision
        precision.check_precision(self.precision, self.device)
        precision.set_flags(self.precision)
        if self.device.type == "cuda":  # on a CPU no forward pass needs it
            repeat_exactly(config.system)
        self.network = network.to(self.device).eval()

    def __call__(self, image: Image) -> Logits:
        """Logits (B, K, *S) of images (B, C, *S) from anywhere, float32, on its device."""
        with precision.autocast(self.precision, self.device):
            found = self.network(image.to(self.device))
        return found.float()

    def stages(self, image: Image) -> dict[str, Tensor]:
        """The network's named intermediates of images (B, C, *S), float32, on the CPU."""
        with precision.autocast(self.precision, self.device):
            found = self.network.stages(image.to(self.device))  # type: ignore[operator]
        return {name: tensor.float().cpu() for name, tensor in found.items()}

    def cases_at_once(self) -> int:
        """How many images of the run's size are predicted together."""
        return cases_at_once(self.config, self.device.type)


def cases_at_once(config: Config, device: str) -> int:
    """How many images of the run's size a type of device predicts together.

    One on a CPU in fp32: batches change the last bits there, and recorded runs must repeat.
    """
    if device == "cpu" and config.train.precision == "fp32":
        return 1
    return max(1, min(MOST_CASES, MOST_VOXELS // torch.Size(config.data.img_size).numel()))


def load_own_state(network: nn.Module, state: dict[str, Tensor]) -> None:
    """Load what `own_state` kept; strict both ways.

    Raises:
        RunError: keys differ; lists them.
    """
    wanted = set(own_state(network))
    if wanted != set(state):
        missing, extra = sorted(wanted - set(state)), sorted(set(state) - wanted)
        raise files.RunError(f"weights do not fit the network: missing {missing}, extra {extra}")
    network.load_state_dict(state, strict=False)


def load_run(run_dir: Path) -> nn.Module:
    """A finished run's network with its best weights, ready to predict.

    Raises:
        RunError: weights are missing, changed, or do not fit.
    """
    config = run_folder.read_config(run_dir)
    task = task_of_run(config, run_folder.read_status(run_dir))
    network = build_system(config, len(task.channels), num_classes(config, task))
    load_own_state(network, checkpoints.load_weights(run_dir))
    return network.eval()
