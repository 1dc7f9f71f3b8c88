"""What a host does with namespaces where data placement is enabled: their reclaim unit handles follow."""

import pytest

from outboard.devices.nvme import Namespace, PlacementLayout, RamPool
from outboard.devices.nvme.spec import BROADCAST, AdminOpcode, Cns
from outboard.devices.nvme.status import Status
from outboard.storage import RamStorage
from tests.devices.nvme.driver import ended
from tests.devices.nvme.management.conftest import MakeHosts
from tests.devices.nvme.test_placement import BLOCK, OK, handles

pytestmark = pytest.mark.point("Z02", "M01", "M02")


def test_handles_follow_what_a_host_creates_formats_and_deletes(make_hosts: MakeHosts) -> None:
    """Namespaces of one handle have blocks of one size; one that nobody has any more is free again."""
    pool = RamPool(4 << 20)
    (host,) = make_hosts(1, Namespace(RamStorage(1 << 20)), placement=PlacementLayout(handles=2), pool=pool)

    def created(blocks: int, flbas: int) -> int:
        completion = host.create(blocks, flbas=flbas)
        assert ended(completion) == OK
        assert host.attach(completion.result) == OK
        return completion.result

    small, large = created(64, 0), created(64, 1)
    assert [handle for nsid in (1, small, large) for _, handle, _ in handles(host.pair, nsid)] == [1, 1, 0]
    before = pool.free
    namespaces = set(host.listed(Cns.ALLOCATED_NAMESPACES))
    host.admin(AdminOpcode.FORMAT_NVM, small, cdw10=1)
    assert [handle for _, handle, _ in handles(host.pair, small)] == [0]
    assert host.delete(small) == host.delete(large) == OK
    nsid = created(1024, 0)
    assert [handle for _, handle, _ in handles(host.pair, nsid)] == [1]
    assert host.write(b"x" * 512, nsid, 1023) == OK
    host.bench.device.subsystem.resize(nsid, 2 << 20)
    assert host.write(b"x" * 512, nsid, 4095) == OK
    assert (before, namespaces) == (pool.capacity - 64 * 512 - 64 * BLOCK, {1, small, large})


def test_a_format_that_no_handle_is_for_is_refused(make_hosts: MakeHosts) -> None:
    spaces = [Namespace(RamStorage(1 << 20), placement_handles=(0,)) for _ in range(2)]
    pool = RamPool(4 << 20)
    (host,) = make_hosts(1, *spaces, placement=PlacementLayout(handles=1), pool=pool)
    assert ended(host.admin(AdminOpcode.FORMAT_NVM, 1, cdw10=1)) == Status.INVALID_FORMAT
    assert ended(host.create(64)) == Status.INVALID_PLACEMENT_HANDLE_LIST
    assert pool.free == pool.capacity
    assert ended(host.admin(AdminOpcode.FORMAT_NVM, 1, cdw10=0)) == OK
    assert ended(host.admin(AdminOpcode.FORMAT_NVM, BROADCAST, cdw10=1)) == OK
    assert host.write(b"y" * BLOCK, 2, 255) == OK
