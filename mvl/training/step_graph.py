"""A whole training step, from the forward pass to the optimiser, as one CUDA graph
(`train.cuda_graph`).

Small networks leave a GPU waiting for the processor, which launches hundreds of operators one by
one. A graph is recorded once and launched as a whole.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor

from mvl.core import device_faults
from mvl.core.config import Config

Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"Images and labels of a batch -> loss and gradient norm, scalars on the device."
Recorder = Callable[[Step, Tensor, Tensor], Step]
"A step and one batch -> the recorded step. Nothing is computed while it records."
WARM_STEPS = 3
"""Steps before the recording, in which libraries choose their ways and the optimiser makes its
state."""


def why_not(config: Config, device: torch.device, processes: int) -> str:
    """Why a run's steps cannot be one graph; empty where they can."""
    if device.type != "cuda":
        return "it needs a CUDA GPU"
    if config.train.precision == "fp16":
        return "the scaler of fp16 decides after each step whether the optimiser takes it"
    if config.train.accumulate > 1:
        return "train.accumulate splits steps"
    return "several processes exchange gradients" if processes > 1 else ""


def graph_of(step: Step, config: Config, device: torch.device, processes: int) -> StepGraph | None:
    """What takes a run's batches by a graph of `step`; None, with a line that says why, where steps
    cannot be recorded."""
    reason = why_not(config, device, processes)
    if not reason:
        return StepGraph(step, config.train.batch_size)
    print(f"train.cuda_graph: steps go one operator at a time: {reason}", file=sys.stderr)
    return None


class StepGraph:
    """Takes full batches by a recorded step, and shorter ones, and all where recording failed, by
    the plain step."""

    def __init__(self, step: Step, batch_size: int, record: Recorder | None = None) -> None:
        self.step, self.batch_size = step, batch_size
        self.record: Recorder = record or record_on_cuda
        self.taken = 0
        self.recorded: Step | None = None
        self.failed = False

    def __call__(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and gradient norm of one step."""
        if self.failed or len(image) < self.batch_size:
            return self.step(image, label)
        if self.recorded is None and self.taken < WARM_STEPS:
            self.taken += 1
            return beside(self.step, image, label)
        if self.recorded is None:
            self.recorded = self.recording(image, label)
        return self.recorded(image, label)

    def recording(self, image: Tensor, label: Tensor) -> Step:
        """The recorded step; the plain one, with a line saying so, where it cannot be."""
        try:
            return self.record(self.step, image, label)
        except RuntimeError as error:
            if device_faults.loses_device(error):
                raise
            self.failed = True
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            print(
                f"train.cuda_graph: the step could not be recorded ({reason}); steps go on one"
                " operator at a time",
                file=sys.stderr,
            )
            return self.step


def beside(step: Step, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """One step on a stream of its own, as recording asks of the steps before it."""
    if image.device.type != "cuda":
        return step(image, label)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = step(image, label)
    torch.cuda.current_stream().wait_stream(stream)
    return found


def record_on_cuda(step: Step, image: Tensor, label: Tensor) -> Step:
    """Record a step as a CUDA graph.

    Raises:
        RuntimeError: the step waits for the device, or does something else that a graph cannot
            hold.
    """
    still_image, still_label = image.clone(), label.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss, norm = step(still_image, still_label)

    def replay(image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        still_image.copy_(image)
        still_label.copy_(label)
        graph.replay()
        return loss.clone(), norm.clone()  # the next replay writes over them

    return replay
