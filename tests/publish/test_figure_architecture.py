"""The architecture figure shows what the plan says: boxes, arrows, marks, counts; legible on a
phone."""

from __future__ import annotations

from dataclasses import replace

import matplotlib
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from mvl.core.config import Config, load_config
from mvl.models.build import parameter_counts
from mvl.publish.figure_architecture import draw, of_systems, places
from mvl.publish.network_shapes import make_network


def small(**block: object) -> Config:
    config = load_config("smoke", "phantoms", "medvisionllama_v3")
    return replace(
        config,
        model=replace(
            config.model,
            encoder_layers=1,
            decoder_layers=1,
            token_block=replace(config.model.token_block, **block),
        ),
    )


def names(figure: Figure) -> list[str]:
    return [str(artist.get_gid()) for artist in figure.findobj() if artist.get_gid()]


def words(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


@pytest.fixture(scope="module")
def hybrid() -> Figure:
    return draw(small())


def test_switching_the_residual_off_removes_its_arrow(hybrid: Figure) -> None:
    assert {"arrow:residual", "plus"} <= set(names(hybrid)) and "residual" in words(hybrid)
    without = draw(small(residual=False))
    assert not {"arrow:residual", "plus"} & set(names(without)) and "residual" not in words(without)


def test_after_embedding_moves_the_block_up(hybrid: Figure) -> None:
    def above(figure: Figure) -> bool:
        top = {patch.get_gid(): patch.get_y() for patch in figure.findobj(FancyBboxPatch)}
        return bool(top["part:block"] > top["part:encoder"])

    config = small()
    assert not above(hybrid)
    assert above(
        draw(replace(config, model=replace(config.model, block_position="after_embedding")))
    )


def test_counts_and_marks_are_the_networks(hybrid: Figure) -> None:
    counts = parameter_counts(make_network(small()))
    assert f"trained: {counts['trainable']:,}" in words(
        hybrid
    ) and f"frozen: {counts['frozen']:,}" in words(hybrid)
    marks = names(hybrid)
    assert marks.count("trained") == 7 and marks.count("frozen") == 4, (
        "six trained parts, three frozen ones, and the key"
    )
    trained = draw(small(trainable=True, final_norm="none"))
    assert names(trained).count("frozen") == 3 and "Trained LLM block" in words(trained)


def test_it_says_phantom_and_can_be_read_on_a_phone(hybrid: Figure) -> None:
    assert "phantom" in words(hybrid)
    shown = [t for t in hybrid.findobj(matplotlib.text.Text) if t.get_text()]
    assert min(t.get_fontsize() for t in shown) >= 9
    assert hybrid.get_size_inches()[0] <= 5, (
        "350 of 360 points: nothing shrinks below its size in points"
    )


def test_words_stay_inside_their_box(hybrid: Figure) -> None:
    renderer = FigureCanvasAgg(hybrid).get_renderer()
    hybrid.draw(renderer)
    boxes = {
        p.get_gid().split(":")[1]: p.get_window_extent(renderer)
        for p in hybrid.findobj(FancyBboxPatch)
    }
    for text in hybrid.findobj(matplotlib.text.Text):
        if str(text.get_gid()).startswith("words:"):
            assert text.get_window_extent(renderer).x1 <= boxes[text.get_gid().split(":")[1]].x1, (
                text.get_text()
            )


def test_a_network_itself_is_drawn() -> None:
    config = load_config("smoke", "shapes", "llm4seg")
    figure = draw(make_network(config), img_size=config.data.img_size)
    assert "arrow:skip-cnn_encoder-cnn_decoder" in names(figure) and "arrow:residual" not in names(
        figure
    )


def test_two_networks_stand_side_by_side_and_the_caption_says_where_the_layer_is() -> None:
    study, task = "smoke", "phantoms"
    systems = ("vit_baseline", "medvisionllama_v3", "medvisionllama_v3_after_embedding")
    figure = of_systems(study, task, *systems[:2])
    first, second = figure.axes
    assert not [t for t in first.texts if t.get_gid() == "words:block"]
    assert [t for t in second.texts if t.get_gid() == "words:block"]
    alone, within, before = places(study, task, *systems).split(" parameters")[:3]
    said = places(study, task, *systems)
    assert "ViT-Baseline: no language layer" in said
    assert "comes after the ViT encoder" in said.split("v3, block before")[0]
    assert "comes after the patch embedding" in said.split("v3, block before")[1]
    assert all("trained" in part for part in (alone, within, before))
