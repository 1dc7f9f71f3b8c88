"""Fused pairs on namespaces that are limited."""

from dataclasses import replace

import pytest

from outboard.devices.nvme import Qos
from outboard.devices.nvme.spec import FeatureId, IoOpcode
from outboard.devices.nvme.status import Status
from outboard.native.libc import SECOND
from outboard.storage import RamStorage
from tests.devices.nvme.conftest import MakeBench
from tests.devices.nvme.datapath.test_qos import (  # noqa: F401
    NEVER,
    SIZE,
    Clock,
    clock,
    limited,
    plain_bench,
    read,
    write,
)
from tests.devices.nvme.driver import ended


@pytest.mark.parametrize("nsid", [1, 2], ids=["limited", "not limited"])
def test_a_fused_pair_waits_for_nothing_but_is_paid_for(make_bench: MakeBench, nsid: int) -> None:
    bench = make_bench(limited(NEVER), RamStorage(SIZE))
    pair = bench.driver.enable().create_queue_pair(1)
    compare = replace(read(pair, nsid=nsid, opcode=IoOpcode.COMPARE), flags=1)
    both = [pair.submit(compare), pair.submit(replace(write(pair, nsid=nsid), flags=2))]
    pair.ring()
    assert [ended(pair.wait(cid)) for cid in both] == [Status.SUCCESS] * 2
    cid = pair.submit(read(pair))
    pair.ring()
    bench.settle()
    pair.poll()
    assert (cid in pair.done) == (nsid == 2)


def test_what_a_limit_held_comes_between_no_fused_pair(clock: Clock) -> None:  # noqa: F811
    bench = plain_bench(limited(Qos(iops=1000)))
    driver = bench.driver.enable()
    pair, _ = driver.create_queue_pair(1, entries=64), driver.create_queue_pair(2)
    driver.set_feature(FeatureId.ARBITRATION, 0)
    compare = read(pair, opcode=IoOpcode.COMPARE)
    first, second = replace(compare, flags=1), replace(write(pair), flags=2)
    for _ in range(30):
        pair.submit(read(pair))
    cids = [pair.submit(command) for command in (compare, first, second)]
    pair.ring()
    # With a second queue, commands are taken one at a time.
    for _ in range(100):
        bench.device.controller.process()
        if bench.device.state.fused:
            clock.now += 60 * SECOND
        pair.poll()
    assert [ended(pair.done[cid]) for cid in cids] == [Status.SUCCESS] * 3
    bench.close()
