"""Public addresses come from one place; a run that is not published is linked on this machine."""

from mvl.core.run_folder import records_dir
from mvl.study.links import colab_url, repository_url, run_address


def test_a_notebook_opens_on_colab_from_the_repository():
    name = repository_url().removeprefix("https://github.com/")
    assert colab_url("01_x").endswith(f"/github/{name}/blob/main/notebooks/01_x.ipynb")


def test_a_published_run_is_linked_where_it_is_and_another_beside_the_notebooks(tmp_path):
    place = "quick/runs/phantoms/vit_baseline"
    assert run_address(records_dir(), place) == f"{repository_url()}/tree/main/data/results/{place}"
    assert "/blob/main/" in run_address(records_dir(), f"{place}/status.json")
    own = run_address(tmp_path / "a folder", place)
    assert own.endswith(f"a%20folder/{place}") and "github" not in own
