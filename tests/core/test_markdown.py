"""A table has its head, a mark for each column and a line for each row."""

from mvl.core.markdown import markdown_table


def test_a_table_has_a_line_for_each_row():
    rows = [["a", 1], ["b", ""]]
    assert (
        markdown_table(["name", "n"], "lr", rows) == "| name | n |\n|---|---:|\n| a | 1 |\n| b |  |"
    )
    assert markdown_table(["n"], "r", []) == "| n |\n|---:|"
    assert markdown_table("name | n", "lr", rows) == markdown_table(["name", "n"], "lr", rows)
