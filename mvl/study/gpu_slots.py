"""One GPU for each run: the cards of this machine, and the locked slots by which processes share
them out.

A slot is a folder with a lock, one for each card and each run that the card may hold. The kernel
frees the lock when its process ends, however it ends, so that no crash leaves a card unused.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mvl.core import files

WAIT_S = 1.0
"Seconds between two looks for a free slot."
VISIBLE = "CUDA_VISIBLE_DEVICES"
_started_on: list[str] = []
"""The card that this process showed itself before CUDA began; CUDA cannot be moved to another one
afterwards."""


def visible_gpus() -> tuple[str, ...]:
    """The cards that this process may use, as `CUDA_VISIBLE_DEVICES` names them; CUDA itself is not
    started."""
    named = os.environ.get(VISIBLE)
    if named is not None:
        cards = [card.strip() for card in named.split(",")]
        # CUDA ignores everything from the first name on that is none: "-1" and "" hide all cards.
        last = next((place for place, card in enumerate(cards) if card in ("", "-1")), len(cards))
        return tuple(cards[:last])
    return tuple(str(number) for number in range(_count_cards()))


def _count_cards() -> int:
    """The number of cards by the driver's own tool, or by its device files where the tool is
    absent."""
    words = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        listed = subprocess.run(words, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return len(list(Path("/dev").glob("nvidia[0-9]*")))
    return len(listed.stdout.split()) if listed.returncode == 0 else 0


def slots_folder() -> Path:
    """The folder of this user's slots: on this machine, not beside the results, which several
    machines may share."""
    return Path(tempfile.gettempdir()) / f"mvl-gpus-{os.getuid()}"


def slots(cards: tuple[str, ...], runs_per_gpu: int) -> list[tuple[str, Path]]:
    """Each card with each of its slots, the first slot of every card before any second one."""
    safe = {card: card.replace("/", "-") for card in cards}
    folder = slots_folder()
    places = range(runs_per_gpu)
    return [(card, folder / f"gpu-{safe[card]}-run-{place}") for place in places for card in cards]


@contextmanager
def one_gpu(runs_per_gpu: int = 1) -> Iterator[str]:
    """Hold a slot and show this process its card alone; yields the card, or "" where no slot is
    needed.

    None is needed without a card, under torchrun (which deals the cards itself), and with
    `runs_per_gpu` 0. While every slot is held by another process, this one waits.
    """
    cards = _choices()
    if runs_per_gpu < 1 or not cards or "RANK" in os.environ:
        yield ""
        return
    with ExitStack() as held:
        card = _take(held, slots(cards, runs_per_gpu))
        before = os.environ.get(VISIBLE)
        os.environ[VISIBLE] = card
        _started_on[:] = [card]
        try:
            yield card
        finally:
            if before is None:
                os.environ.pop(VISIBLE, None)
            else:
                os.environ[VISIBLE] = before


def _choices() -> tuple[str, ...]:
    """The cards to choose from: once CUDA runs in this process, only the one that it was started
    on."""
    if _cuda_runs():
        return tuple(_started_on)
    return visible_gpus()


def _cuda_runs() -> bool:
    torch = sys.modules.get("torch")
    return bool(torch is not None and torch.cuda.is_initialized())


def _take(held: ExitStack, places: list[tuple[str, Path]]) -> str:
    """Lock the first free slot, for as long as `held` is open; returns its card."""
    said = False
    while True:
        for card, folder in places:
            try:
                held.enter_context(files.locked(folder))
            except files.RunError:
                # no lock is in the way: nothing can be written there, and waiting would never end
                if not folder.is_dir():
                    raise
                continue
            return card
        if not said:
            print(
                f"waiting for a free GPU ({len(places)} slots are held)",
                file=sys.stderr,
                flush=True,
            )
            said = True
        time.sleep(WAIT_S)


def gpu_is_lost() -> bool:
    """True when CUDA was started in this process and no longer answers: every later call would
    fail, so the process must end."""
    if not _cuda_runs():
        return False
    import torch

    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
