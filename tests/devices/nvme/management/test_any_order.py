"""Management commands of two hosts in any order, with any values: each ends, and nothing is lost."""

import random

import pytest

from outboard.devices.nvme.command import Command
from outboard.devices.nvme.layouts import NAMESPACE_MANAGEMENT
from outboard.devices.nvme.management.pool import RamPool
from outboard.devices.nvme.spec import BROADCAST, AdminOpcode, Cns, FeatureId, IoOpcode
from outboard.devices.nvme.status import Status
from outboard.storage import RamStorage
from tests.devices.nvme.driver import PAGE, ended
from tests.devices.nvme.management.conftest import MakeHosts
from tests.devices.nvme.management.host import MIB, Host

OPCODES = (
    *[AdminOpcode.NAMESPACE_MANAGEMENT] * 4,
    *[AdminOpcode.NAMESPACE_ATTACHMENT] * 4,
    AdminOpcode.FORMAT_NVM,
    AdminOpcode.SANITIZE,
    AdminOpcode.DEVICE_SELF_TEST,
    AdminOpcode.FIRMWARE_DOWNLOAD,
    AdminOpcode.FIRMWARE_COMMIT,
    AdminOpcode.SECURITY_RECEIVE,
    AdminOpcode.SECURITY_SEND,
    AdminOpcode.SET_FEATURES,
    AdminOpcode.GET_LOG_PAGE,
    AdminOpcode.IDENTIFY,
)


def any_command(chance: random.Random, host: Host) -> Command:
    opcode = chance.choice(OPCODES)
    nsid = chance.choice((0, 1, 2, 3, 4, 5, 33, BROADCAST))
    command = Command(opcode, nsid=nsid, prp1=host.driver.data, cdw10=chance.randrange(16))
    data = chance.randbytes(64).ljust(PAGE, b"\0")
    match opcode:
        case AdminOpcode.NAMESPACE_MANAGEMENT:
            command.cdw10 = chance.choice((0, 0, 0, 1, 1, 2))
            blocks = chance.choice((1, 64, 512, 1024, 1 << 40))
            fields = {"flbas": chance.randrange(8), "nmic": chance.randrange(2)}
            data = NAMESPACE_MANAGEMENT.encode(nsze=blocks, ncap=blocks, **fields)
        case AdminOpcode.NAMESPACE_ATTACHMENT:
            command.cdw10 = chance.choice((0, 0, 1))
            data = bytes(chance.choice(([1, 0, 1, 0], [1, 0, 2, 0], [2, 0, 1, 0, 2, 0], [9, 9]))).ljust(
                PAGE, b"\0"
            )
        case AdminOpcode.FORMAT_NVM:
            command.cdw10 = chance.choice((0, 0, 1, 3, 9, 0xFFFF))
        case AdminOpcode.SANITIZE:
            command.cdw10 = chance.choice((1, 2, 2 | 1 << 9, 3 | 1 << 4, 4, 0xFFFF_FFFF))
        case AdminOpcode.SET_FEATURES:
            command.cdw10, command.cdw11 = FeatureId.NAMESPACE_WRITE_PROTECTION, chance.choice((0, 0, 1))
        case AdminOpcode.GET_LOG_PAGE:
            command.cdw10 = chance.choice((3, 4, 6, 0x81)) | 127 << 16
        case AdminOpcode.FIRMWARE_DOWNLOAD:
            command.cdw10, command.cdw11 = 1023, chance.choice((0, 1024, 1))
            data = b"outboard-firmware 1.1\n".ljust(PAGE, b"\0")
        case AdminOpcode.FIRMWARE_COMMIT:
            command.cdw10 = chance.randrange(64)
        case _:
            command.cdw10 = (
                chance.randrange(0x20) if opcode == AdminOpcode.IDENTIFY else chance.getrandbits(32)
            )
            command.cdw11 = chance.choice((0, 512, 0xFFFF_FFFF))
    host.driver.ram.write(host.driver.data, data)
    return command


@pytest.mark.point("T01", "M01", "M02", "M03", "M04")
@pytest.mark.parametrize("seed", range(6))
def test_any_command_ends_and_accounts_agree(make_hosts: MakeHosts, seed: int) -> None:
    chance = random.Random(seed)
    pool = RamPool(2 * MIB)
    hosts = make_hosts(2, RamStorage(MIB), pool=pool, most_namespaces=5)
    subsystem = hosts[0].bench.device.subsystem
    seen: set[Status] = set()
    for _ in range(150):
        host = chance.choice(hosts)
        seen.add(ended(host.driver.admin.execute(any_command(chance, host))))
        slba = chance.randrange(64)
        opcode = chance.choice((IoOpcode.READ, IoOpcode.WRITE))
        nsid = chance.randrange(1, 6)
        host.pair.execute(host.driver.rw(opcode, slba, 1, host.driver.data, 512, nsid=nsid))
        if chance.random() < 0.02:
            host.restart()
        if chance.random() < 0.3:
            host.until(lambda: not subsystem.background.operations)
        with subsystem.turn:
            created = [space for space in subsystem.namespaces.values() if space.created]
            assert pool.free == pool.capacity - sum(space.storage.size for space in created)
            for nsid, space in subsystem.namespaces.items():
                assert space.attached == {
                    n for n, each in subsystem.controllers.items() if nsid in each.namespaces
                }
                assert space.shared or len(space.attached) <= 1
    assert Status.INTERNAL_ERROR not in seen
    assert len(seen) > 6
    for host in hosts:
        host.until(lambda: not subsystem.background.operations)
        host.restart()
        assert set(host.listed(Cns.ACTIVE_NAMESPACES)) <= set(host.listed(Cns.ALLOCATED_NAMESPACES))
