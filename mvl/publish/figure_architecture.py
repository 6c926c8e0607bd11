"""The architecture figure, drawn from the network that is built: boxes and arrows, shapes, counts,
what is trained and what is frozen."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, PathPatch
from matplotlib.path import Path
from torch import nn

from mvl.core.config import Config, load_config
from mvl.evidence.arms import title
from mvl.publish.network_parts import Part, Plan, plan
from mvl.publish.network_shapes import make_network
from mvl.publish.style import FROZEN, INK, MIXED, NEUTRAL, TRAINED, finish, styled

WIDTH, LEFT, RIGHT = 4.8, 0.5, 4.3
"""Width of the drawing and where its boxes begin and end, inches: narrow, so that its words can be
read on a phone."""
GAP, LINE, PAD = 0.3, 0.175, 0.1
"Space under a box, height of a line of words, and of the rim above and below them, inches."
ICONS = 0.36
"Width of the column of flames and snowflakes inside a box, inches."


@styled
def draw(*subjects: Config | nn.Module, img_size: tuple[int, ...] = ()) -> Figure:
    """The networks of configs, or networks themselves (a CNN with the size of its images), from
    input to output, side by side.

    Raises:
        PartsError: a network of a kind that has no drawing.
    """
    found = [_plan(subject, img_size) for subject in subjects]
    heights = [[_height(part) for part in one.parts] for one in found]
    total = max(sum(each) + GAP * (len(each) - 1) for each in heights) + 0.95
    figure = Figure(figsize=(WIDTH * len(subjects), total), layout="constrained")
    row = figure.subplots(1, len(subjects), squeeze=False)[0]
    for axis, subject, one, each in zip(row, subjects, found, heights):
        _network(axis, subject, one, each, total)
    tasks = {subject.task for subject in subjects if isinstance(subject, Config)}
    return finish(figure, sorted(tasks))


def _plan(subject: Config | nn.Module, img_size: tuple[int, ...]) -> Plan:
    if isinstance(subject, Config):
        return plan(make_network(subject), subject.data.img_size, subject)
    return plan(subject, img_size, None)


def _network(
    axis: Axes,
    subject: Config | nn.Module,
    found: Plan,
    heights: Sequence[float],
    total: float,
) -> None:
    """Draw one network in its column, which is `total` inches high."""
    config = subject if isinstance(subject, Config) else None
    axis.set(xlim=(0, WIDTH), ylim=(-total + 0.35, 0.35), aspect="equal")
    axis.axis("off")
    axis.text(
        LEFT,
        0.1,
        title(config.system) if config else type(subject).__name__,
        fontsize=12,
        fontweight="bold",
        va="bottom",
    )
    places = _boxes(axis, found, heights)
    for start, end in itertools.pairwise(found.parts):
        _flow(axis, start, places[start.key][1], places[end.key][0], _letter(start, found))
    for kind, first, last in found.around:
        (_residual if kind == "residual" else _skip)(axis, places, first, last)
    _totals(axis, found, places[found.parts[-1].key][1] - 0.6)


def of_systems(study: str, task: str, *systems: str) -> Figure:
    """The networks of a study's systems at the study's own size, side by side."""
    return draw(*(load_config(study, task, system) for system in systems))


def places(study: str, task: str, *systems: str) -> str:
    """Say for each system what its block follows and how many parameters are trained and frozen:
    the caption of `of_systems`."""
    sentences = []
    for system in systems:
        parts = _plan(load_config(study, task, system), ()).parts
        keys = [part.key for part in parts]
        before = (
            [part for part in parts[: keys.index("block")] if "mapper" not in part.key]
            if ("block" in keys)
            else []
        )
        where = "no language layer"
        if before:
            name = before[-1].title.split("$")[0].strip()
            where = f"the language layer comes after the {name.replace('Patch', 'patch')}"
        trained = sum(part.trained for part in parts)
        frozen = sum(part.frozen for part in parts)
        end = f" and {frozen:,} frozen" if frozen else ""
        sentences.append(f"{title(system)}: {where}; {trained:,} trained parameters{end}.")
    return " ".join(sentences)


def _height(part: Part) -> float:
    return LINE * (1 + len(_lines(part))) + 2 * PAD


def _lines(part: Part) -> list[str]:
    """Words under a box's title: its sizes, and its counts where it has parameters."""
    counts = [
        f"{number:,} {word}"
        for number, word in ((part.trained, "trained"), (part.frozen, "frozen"))
        if number
    ]
    details = [
        line
        for detail in part.detail.split("\n")
        for line in textwrap.wrap(detail, 46, break_long_words=False)
    ]
    return [*details, *(["  ·  ".join(counts)] if counts else [])]


def _look(part: Part) -> tuple[str, str]:
    if part.trained and part.frozen:
        return MIXED
    if part.trained:
        return TRAINED
    return FROZEN if part.frozen else NEUTRAL


def _boxes(axis: Axes, found: Plan, heights: Sequence[float]) -> dict[str, tuple[float, float]]:
    """Draw every part; returns top and bottom of each."""
    places, top = dict[str, tuple[float, float]](), 0.0
    for part, height in zip(found.parts, heights):
        edge, fill = _look(part)
        box = FancyBboxPatch(
            (LEFT, top - height),
            RIGHT - LEFT,
            height,
            boxstyle="round,pad=0,rounding_size=0.08",
            edgecolor=edge,
            facecolor=fill,
            linewidth=1.4,
            gid=f"part:{part.key}",
        )
        axis.add_patch(box)
        axis.text(
            LEFT + ICONS + 0.06,
            top - PAD - LINE / 2,
            part.title,
            fontsize=10.5,
            fontweight="bold",
            va="center",
        )
        for number, words in enumerate(_lines(part), 1):
            axis.text(
                LEFT + ICONS + 0.06,
                top - PAD - LINE * (number + 0.5),
                words,
                fontsize=9,
                va="center",
                gid=f"words:{part.key}",
            )
        _icons(axis, part, LEFT + ICONS / 2 + 0.02, top - height / 2)
        places[part.key] = top, top - height
        top -= height + GAP
    return places


def _icons(axis: Axes, part: Part, x: float, y: float) -> None:
    """A flame for trained parameters, a snowflake for frozen ones, both where there are both."""
    both = bool(part.trained and part.frozen)
    if part.trained:
        _flame(axis, x, y + 0.15 * both)
    if part.frozen:
        _snowflake(axis, x, y - 0.15 * both)


def _flame(axis: Axes, x: float, y: float, size: float = 0.12) -> None:
    points = [
        (0.0, 1.25),
        (0.1, 0.7),
        (0.8, 0.4),
        (0.75, -0.25),
        (0.7, -0.8),
        (0.35, -1.0),
        (0.0, -1.0),
        (-0.35, -1.0),
        (-0.75, -0.8),
        (-0.75, -0.25),
        (-0.75, 0.1),
        (-0.5, 0.3),
        (-0.4, 0.55),
        (-0.3, 0.2),
        (-0.2, 0.1),
        (-0.1, 0.1),
        (0.05, 0.6),
        (-0.15, 0.9),
        (0.0, 1.25),
    ]
    outline = Path(
        [(x + size * a, y + size * b) for a, b in points], [Path.MOVETO, *[Path.CURVE4] * 18]
    )
    axis.add_patch(PathPatch(outline, facecolor=TRAINED[0], linewidth=0, gid="trained"))


def _snowflake(axis: Axes, x: float, y: float, size: float = 0.125) -> None:
    points: list[tuple[float, float]] = []
    for turn in range(6):
        angle = math.pi * (turn / 3 + 1 / 6)
        points.append((x, y))
        for far, off in ((1, 0), (0.55, 0), (0.85, 0.3), (0.55, 0), (0.85, -0.3)):
            points.append(
                (
                    x + size * (far * math.cos(angle) - off * math.sin(angle)),
                    y + size * (far * math.sin(angle) + off * math.cos(angle)),
                )
            )
    outline = Path(points, [Path.MOVETO, Path.LINETO] * (len(points) // 2))
    axis.add_patch(
        PathPatch(
            outline, fill=False, edgecolor=FROZEN[0], linewidth=1.3, capstyle="round", gid="frozen"
        )
    )


def _arrow(
    axis: Axes,
    points: Sequence[tuple[float, float]],
    name: str,
    ink: str = INK,
    dashed: bool = False,
) -> None:
    path = Path(list(points), [Path.MOVETO, *[Path.LINETO] * (len(points) - 1)])
    axis.add_patch(
        FancyArrowPatch(
            path=path,
            arrowstyle="-|>",
            mutation_scale=9,
            color=ink,
            linewidth=1.3,
            fill=False,
            joinstyle="round",
            linestyle="--" if dashed else "-",
            gid=f"arrow:{name}",
        )
    )


def _letter(part: Part, found: Plan) -> str:
    """The paper's letters for what the encoder gives and what the decoder takes, where the order is
    the paper's."""
    after, keys = {"encoder": "P: ", "mapper2": "Q: "}, found.keys
    paper = "encoder" in keys and (
        "mapper1" not in keys or keys.index("encoder") < keys.index("mapper1")
    )
    return after.get(part.key, "") if paper else ""


def _flow(axis: Axes, start: Part, top: float, bottom: float, letter: str) -> None:
    """The arrow to the next box, with the shape of what goes along it."""
    middle = (LEFT + RIGHT) / 2
    _arrow(axis, [(middle, top), (middle, bottom)], f"from-{start.key}")
    if start.key == "input":
        return
    words = f"{letter}{' × '.join(map(str, start.shape))}"
    axis.text(
        middle + 0.12, (top + bottom) / 2, words, fontsize=9, va="center", gid=f"shape:{start.key}"
    )


def _residual(axis: Axes, places: dict[str, tuple[float, float]], first: str, last: str) -> None:
    """Draw from the arrow into `first` around the left to a plus on the arrow out of `last`."""
    middle, x = (LEFT + RIGHT) / 2, LEFT - 0.22
    begin, end = places[first][0] + GAP * 0.5, places[last][1] - GAP * 0.42
    _arrow(axis, [(middle, begin), (x, begin), (x, end), (middle - 0.085, end)], "residual")
    axis.add_patch(
        Circle(
            (middle, end),
            0.085,
            facecolor=NEUTRAL[1],
            edgecolor=INK,
            linewidth=1.2,
            zorder=4,
            gid="plus",
        )
    )
    axis.text(middle, end, "+", fontsize=10, ha="center", va="center_baseline", zorder=5)
    axis.text(
        x - 0.05, (begin + end) / 2, "residual", fontsize=9, rotation=90, ha="right", va="center"
    )


def _skip(axis: Axes, places: dict[str, tuple[float, float]], first: str, last: str) -> None:
    """From `first` around the right into `last`."""
    x, begin, end = RIGHT + 0.2, sum(places[first]) / 2, sum(places[last]) / 2
    _arrow(
        axis,
        [(RIGHT, begin), (x, begin), (x, end), (RIGHT, end)],
        f"skip-{first}-{last}",
        dashed=True,
    )
    axis.text(
        x + 0.05,
        (begin + end) / 2,
        "skips" if first == "cnn_encoder" else "half-way and last features",
        fontsize=9,
        rotation=90,
        ha="left",
        va="center",
    )


def _totals(axis: Axes, found: Plan, bottom: float) -> None:
    """Flame and snowflake with what they stand for, and the parameters of all parts together."""
    trained, frozen = (
        sum(part.trained for part in found.parts),
        sum(part.frozen for part in found.parts),
    )
    y = bottom + 0.2
    _flame(axis, LEFT + 0.1, y)
    axis.text(
        LEFT + 0.27, y, f"trained: {trained:,}", fontsize=9.5, va="center", gid="total:trained"
    )
    _snowflake(axis, LEFT + 2.1, y)
    axis.text(LEFT + 2.28, y, f"frozen: {frozen:,}", fontsize=9.5, va="center", gid="total:frozen")
