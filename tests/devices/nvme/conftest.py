import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from outboard.devices.nvme import Namespace, Nvme, Subsystem
from outboard.devices.nvme.datapath.tuning import Tuning
from outboard.native.jit import available
from outboard.storage import RamStorage, Storage
from tests.devices.nvme.bench import Bench
from tests.devices.nvme.datapath.live import LiveBench
from tests.devices.nvme.driver import Driver
from tests.devices.nvme.hosts import A, B, C, Host

MakeBench = Callable[..., Bench]
MakePaths = Callable[..., list[Bench]]


@pytest.fixture(params=["plain", "native"])
def lane(request: pytest.FixtureRequest) -> str:
    """How the data plane runs: as Python, and compiled; both in the device's own thread, to be repeatable."""
    if request.param == "native" and not available():
        if os.environ.get("CI"):
            pytest.fail("Numba is not installed: pip install 'outboard[fast]'")
        pytest.skip("Numba is not installed: pip install 'outboard[fast]'")
    return str(request.param)


@pytest.fixture
def make_bench(lane: str) -> Iterator[MakeBench]:
    """Make a bench of a controller with these namespaces (default: one of 512 and one of 4096 bytes)."""
    benches: list[Bench] = []

    def make(*namespaces: Namespace | Storage, **options: object) -> Bench:
        if not namespaces and "subsystem" not in options:
            namespaces = (Namespace(RamStorage(8 << 20)), Namespace(RamStorage(4 << 20), 4096))
        options.setdefault("tuning", Tuning(pollers=0, native=lane == "native"))
        benches.append(Bench(Nvme(*namespaces, **options)))  # type: ignore[arg-type]
        return benches[-1]

    yield make
    for bench in benches:
        bench.close()


@pytest.fixture
def make_paths(lane: str) -> Iterator[MakePaths]:
    """Make benches of controllers, two unless said otherwise, that share a subsystem.

    With pollers they are live ones.
    """
    benches: list[Bench] = []
    spaces: list[Namespace] = []

    def make(
        *namespaces: Namespace | Storage, count: int = 2, pollers: int = 0, **options: Any
    ) -> list[Bench]:
        subsystem = Subsystem(*namespaces or (RamStorage(8 << 20),), **options)
        spaces.extend(subsystem.namespaces.values())
        kind = LiveBench if pollers else Bench
        tuning = Tuning(pollers=pollers, native=lane == "native", spin=5)
        made = [kind(Nvme(subsystem=subsystem, tuning=tuning)) for _ in range(count)]
        benches.extend(made)
        return made

    yield make
    for bench in benches:
        bench.leave()
    for space in spaces:
        space.storage.close()


@pytest.fixture
def hosts(make_paths: MakePaths) -> list[Host]:
    """The hosts A, B and C with two namespaces, and A once more by another controller."""
    benches = make_paths(RamStorage(1 << 20), RamStorage(1 << 20), count=4)
    return [Host(bench, name) for bench, name in zip(benches, (A, B, C, A), strict=True)]


@pytest.fixture
def bench(make_bench: MakeBench) -> Bench:
    return make_bench()


@pytest.fixture
def driver(bench: Bench) -> Driver:
    """A driver of a running controller."""
    return bench.driver.enable()
