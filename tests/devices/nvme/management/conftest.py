from collections.abc import Callable, Iterator

import pytest

from outboard.devices.nvme import Namespace, Nvme, Subsystem
from outboard.devices.nvme.datapath.tuning import Tuning
from outboard.storage import Storage
from tests.devices.nvme.bench import Bench
from tests.devices.nvme.management.host import Host

MakeHosts = Callable[..., list[Host]]


@pytest.fixture
def make_hosts(lane: str) -> Iterator[MakeHosts]:
    """Make hosts of as many controllers of one subsystem."""
    benches: list[Bench] = []

    def make(count: int, *namespaces: Namespace | Storage, **options: object) -> list[Host]:
        subsystem = Subsystem(*namespaces, **options)  # type: ignore[arg-type]
        tuning = Tuning(pollers=0, native=lane == "native")
        made = [Bench(Nvme(subsystem=subsystem, tuning=tuning)) for _ in range(count)]
        benches.extend(made)
        return [Host(bench) for bench in made]

    yield make
    for bench in benches:
        bench.leave()
    for bench in benches:
        for space in bench.device.subsystem.namespaces.values():
            space.storage.close()
