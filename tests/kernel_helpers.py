"""Fixtures of the tests of the compiled operators."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest


def fixtures(operator: ModuleType) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`library`, which skips where there is none, and `anew`: it is looked for in the test and after it."""

    @pytest.fixture(scope="module")
    def library() -> ctypes.CDLL:
        found = operator.compiled()
        if found is None:
            pytest.skip("there is no C++ compiler here, or TACE_NATIVE=0")
        return found

    @pytest.fixture
    def anew() -> Iterator[None]:
        operator.compiled.cache_clear()
        yield
        operator.compiled.cache_clear()

    return library, anew
