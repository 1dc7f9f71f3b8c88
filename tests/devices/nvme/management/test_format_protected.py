"""Format NVM with protection information: every type, either place, every format that has room for it."""

import itertools

import pytest

from outboard.devices.nvme.namespace import FORMATS
from outboard.devices.nvme.spec import AdminOpcode, IoOpcode
from outboard.devices.nvme.status import Status
from outboard.storage import RamStorage
from tests.devices.nvme.driver import do_not_retry, ended
from tests.devices.nvme.management.conftest import MakeHosts
from tests.devices.nvme.management.host import MIB, Host
from tests.devices.nvme.protected import ACTION, APPLICATION, GUARD, REFERENCE, Tuple

PROTECTED = [number for number, each in enumerate(FORMATS) if each.metadata]
PLAIN = [number for number, each in enumerate(FORMATS) if not each.metadata]

SLBA, BLOCKS, TAG = 5, 3, 0xABCD


@pytest.fixture
def host(make_hosts: MakeHosts) -> Host:
    return make_hosts(1, RamStorage(MIB))[0]


def setting(lbaf: int, kind: int, *, first: bool = False, extended: bool = False) -> int:
    """Dword 10 of Format NVM."""
    return lbaf | extended << 4 | kind << 5 | first << 8


class Blocks:
    """Commands on the blocks of a namespace that has just been formatted."""

    def __init__(self, host: Host, lbaf: int, kind: int, *, first: bool, extended: bool) -> None:
        self.host, self.driver = host, host.driver
        self.format, self.kind, self.first, self.extended = FORMATS[lbaf], kind, first, extended
        self.driver.ram.rewind(1 << 20)
        self.data, self.metadata = (self.driver.ram.allocate(8 * 4096) for _ in range(2))

    @property
    def tuple_size(self) -> int:
        return 8 if self.format.guard == 16 else 16

    @property
    def checks(self) -> int:
        """Whatever may be checked: the reference tags of type 3 are the host's own."""
        return GUARD | APPLICATION | (REFERENCE if self.kind != 3 else 0)

    def run(
        self, opcode: IoOpcode, info: int, *, slba: int = SLBA, blocks: int = BLOCKS, **more: int
    ) -> Status:
        carried = 0 if info & ACTION and self.format.metadata == self.tuple_size else self.format.metadata
        size = blocks * (self.format.block_size + carried * self.extended)
        fields = {"cdw14": slba, "cdw15": TAG | 0xFFFF << 16, "mptr": self.metadata} | more
        command = self.driver.rw(opcode, slba, blocks, self.data, size, cdw12=info << 26, **fields)
        return ended(self.host.pair.execute(command))

    def stored(self) -> Tuple:
        """The protection information of the first block, read as it is."""
        assert self.run(IoOpcode.READ, 0, blocks=1) == Status.SUCCESS
        ram, block, size = self.driver.ram, self.format.block_size, self.format.metadata
        raw = ram.read(self.data + block if self.extended else self.metadata, size)
        return Tuple.decode(raw[: self.tuple_size] if self.first else raw[-self.tuple_size :])


@pytest.mark.point("M02", "N13")
@pytest.mark.parametrize("first", [False, True], ids=["last", "first"])
@pytest.mark.parametrize("kind", [1, 2, 3])
@pytest.mark.parametrize("lbaf", PROTECTED)
def test_blocks_are_protected_in_the_way_that_was_asked_for(
    host: Host, lbaf: int, kind: int, first: bool
) -> None:
    for extended in (False, True):
        dword = setting(lbaf, kind, first=first, extended=extended)
        assert ended(host.admin(AdminOpcode.FORMAT_NVM, 1, cdw10=dword)) == Status.SUCCESS
        data = host.namespace(1)
        assert (data["dps"], data["flbas"]) == (kind | first << 3, lbaf | extended << 4)
        blocks = Blocks(host, lbaf, kind, first=first, extended=extended)
        assert blocks.run(IoOpcode.VERIFY, blocks.checks) == Status.SUCCESS, "nothing was written yet"
        host.driver.ram.write(blocks.data, bytes(range(256)) * 64)
        assert blocks.run(IoOpcode.WRITE, ACTION) == Status.SUCCESS
        assert blocks.run(IoOpcode.VERIFY, blocks.checks) == Status.SUCCESS
        other = blocks.run(IoOpcode.VERIFY, APPLICATION, cdw15=TAG ^ 1 | 0xFFFF << 16)
        assert other == Status.APPLICATION_TAG_CHECK_ERROR
        found = blocks.stored()
        assert (found.application, found.reference) == (TAG, SLBA)


@pytest.mark.point("M02", "N13")
@pytest.mark.parametrize("lbaf", PROTECTED)
def test_a_format_without_protection_takes_it_away(host: Host, lbaf: int) -> None:
    assert ended(host.admin(AdminOpcode.FORMAT_NVM, 1, cdw10=setting(lbaf, 1))) == Status.SUCCESS
    assert ended(host.admin(AdminOpcode.FORMAT_NVM, 1, cdw10=setting(lbaf, 0))) == Status.SUCCESS
    assert host.namespace(1)["dps"] == 0
    blocks = Blocks(host, lbaf, 0, first=False, extended=False)
    host.driver.ram.write(blocks.metadata, b"m" * 4096)
    assert blocks.run(IoOpcode.WRITE, 0) == blocks.run(IoOpcode.VERIFY, blocks.checks) == Status.SUCCESS


@pytest.mark.point("M02")
@pytest.mark.parametrize(
    ("lbaf", "kind"), [*itertools.product(PLAIN, (1, 2, 3)), *itertools.product(PROTECTED, (4, 5, 6, 7))]
)
def test_protection_there_is_not_is_an_invalid_format(host: Host, lbaf: int, kind: int) -> None:
    host.write(b"x" * 512)
    for first, extended in itertools.product((False, True), repeat=2):
        dword = setting(lbaf, kind, first=first, extended=extended)
        completion = host.admin(AdminOpcode.FORMAT_NVM, 1, cdw10=dword)
        assert ended(completion) == Status.INVALID_FORMAT
        assert do_not_retry(completion)
    assert (host.namespace(1)["flbas"], host.namespace(1)["dps"]) == (0, 0)
    assert host.read() == b"x" * 512
