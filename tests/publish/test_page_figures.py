"""The pages' own figures are written with captions, those of records only where they are shown."""

from mvl.core.run_folder import records_dir
from mvl.publish import page_figures


def test_each_figure_lies_beside_the_pages_with_its_caption(tmp_path):
    shown = page_figures.facts(tmp_path, ("hippocampus",), records_dir())
    for key, markdown in shown.items():
        name = key.removeprefix("figure_")
        assert markdown.endswith(f"({name}.svg)") and markdown.startswith("![")
        assert "<dc:description>" in (tmp_path / f"{name}.svg").read_text()
    assert page_figures.facts(tmp_path, ("quick",), records_dir())["figure_worth"] == ""
