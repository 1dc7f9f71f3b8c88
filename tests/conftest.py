"""What holds for every test: guest tests that cannot run fail on a CI machine; garbage is found quickly."""

import gc
import os
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# A machine shared with virtual machines and builds says nothing by being slow.
settings.register_profile("outboard", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("outboard")


def pytest_collection_finish() -> None:
    """Leave thousands of collected tests out of every later collection of garbage: many tests ask for one."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With ``CI=true`` turn the skip of a test marked ``guest`` into a failure."""
    report = yield
    if (
        report.skipped
        and item.get_closest_marker("guest")
        and os.environ.get("CI") == "true"
        and not hasattr(report, "wasxfail")
    ):
        report.outcome = "failed"
        report.longrepr = (
            f"a guest test was skipped, which CI does not allow: {call.excinfo and call.excinfo.value}"
        )
    return report
