"""Each data-plane function runs plain and compiled; where there is no Numba, CI does not accept the skip."""

import gc
import os
from collections.abc import Callable

import pytest

from outboard.native import jit

Call = Callable[[jit.Entry], Callable[..., int]]


@pytest.fixture(params=["plain", "native"])
def call(request: pytest.FixtureRequest) -> Call:
    """Gives the function of an entry that a test is to call."""
    if request.param == "plain":
        return lambda entry: entry.plain
    if not jit.available() and os.environ.get("CI") != "true":
        pytest.skip("there is no Numba here")
    return lambda entry: entry.native


@pytest.fixture(scope="session")
def call_both() -> list[Call]:
    """The plain call and, where there can be one, the compiled: for properties of both."""
    calls: list[Call] = [lambda entry: entry.plain]
    return [*calls, lambda entry: entry.native] if jit.available() else calls


@pytest.fixture(scope="module", autouse=True)
def _nothing_goes_by_itself() -> None:
    """Descriptors are counted here: those of devices that other tests have forgotten go before."""
    gc.collect()
