import os
from collections.abc import Callable, Iterator

import pytest

from outboard.devices.nvme import Namespace, Nvme
from outboard.devices.nvme.datapath.tuning import Tuning
from outboard.native.jit import available
from outboard.storage import RamStorage, Storage
from tests.devices.nvme.bench import Bench
from tests.devices.nvme.driver import Driver

MakeBench = Callable[..., Bench]


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
def bench(make_bench: MakeBench) -> Bench:
    return make_bench()


@pytest.fixture
def driver(bench: Bench) -> Driver:
    """A driver of a running controller."""
    return bench.driver.enable()
