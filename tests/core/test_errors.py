"""Every error that the package raises on purpose is an MvlError with an exit code."""

import importlib
import inspect
import pkgutil

import mvl
from mvl.core.config import ConfigError
from mvl.core.errors import BAD, DONE, NO_SPACE, USAGE, MvlError


def test_every_error_class_of_the_package_is_an_mvl_error():
    outside = []
    for module in pkgutil.walk_packages(mvl.__path__, "mvl."):
        if module.name == "mvl.__main__":
            continue
        for name, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            own = kind.__module__ == module.name and issubclass(kind, Exception)
            if own and not issubclass(kind, MvlError) and not name.startswith("_"):
                outside.append(f"{module.name}.{name}")
    assert outside == []


def test_codes_differ_and_a_wrong_setting_is_wrong_usage():
    assert len({DONE, BAD, USAGE, NO_SPACE}) == 4 and DONE == 0
    assert ConfigError("x").exit_code == USAGE and MvlError("x").exit_code == BAD
