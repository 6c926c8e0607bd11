"""The columns that name a run stand first in every table."""

from mvl.core.columns import CASE_COLUMNS, DECATHLON, METRICS, RUN_KEYS, run_columns
from mvl.core.config import load_config


def test_a_run_is_named_by_its_keys():
    config = load_config("quick", "phantoms", "vit_baseline", 0.3, 1, 2)
    named = run_columns(config)
    assert list(named) == RUN_KEYS
    assert list(named.values()) == ["quick", "phantoms", "vit_baseline", 0.3, 1, 2]


def test_cases_begin_with_the_run_and_hold_every_metric():
    assert CASE_COLUMNS[: len(RUN_KEYS)] == RUN_KEYS
    assert set(METRICS) | set(DECATHLON) <= set(CASE_COLUMNS)
    assert len(CASE_COLUMNS) == len(set(CASE_COLUMNS))
