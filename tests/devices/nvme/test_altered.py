"""Blocks with metadata under faults: both are torn at one place; a guard shows what is wrong, or does not."""

import random
from collections.abc import Iterator

import pytest

from outboard.devices.nvme import Fault, Namespace, Protection
from outboard.devices.nvme.altered import Altered
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.injection import Strike
from outboard.devices.nvme.spec import IoOpcode
from outboard.storage import RamStorage
from tests.devices.nvme.protected import guard as guard_of

BLOCK, METADATA, COUNT = 512, 8, 4
LBA = 10


def inverted(data: bytes) -> bytes:
    return bytes(255 - each for each in data)


def checksum(block: bytes) -> bytes:
    return guard_of(block, 16).to_bytes(2, "big") + b"apptag"


@pytest.fixture
def space() -> Iterator[Namespace]:
    space = Namespace(RamStorage(1 << 20), BLOCK, METADATA, protection=Protection())
    yield space
    space.storage.close()


def seen(space: Namespace, opcode: IoOpcode, **effects: object) -> Altered:
    fault = Fault(opcode=opcode, **effects)  # type: ignore[arg-type]
    command = Command(opcode, nsid=1, cdw10=LBA, cdw12=COUNT - 1)
    return Altered(space, command, Strike((fault,), 0, seed=5))


def places(space: Namespace) -> tuple[int, int]:
    return LBA * BLOCK, space.metadata_offset + LBA * METADATA


def blocks(data: bytes) -> list[bytes]:
    return [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]


def sealed(data: bytes) -> bytes:
    return b"".join(map(checksum, blocks(data)))


@pytest.mark.parametrize("metadata_first", [False, True])
@pytest.mark.parametrize("guard", ["stale", "valid"])
def test_wrong_blocks_are_found_out_by_their_guard_or_are_not(
    space: Namespace, metadata_first: bool, guard: str
) -> None:
    data = random.Random(1).randbytes(COUNT * BLOCK)
    at, metadata_at = places(space)
    space.storage.write(at, data)
    space.storage.write(metadata_at, inverted(sealed(data)))
    storage = seen(space, IoOpcode.READ, flip=1, guard=guard)
    if metadata_first:
        metadata = inverted(storage.read(metadata_at, COUNT * METADATA))
    found = storage.read(at, len(data))
    if not metadata_first:
        metadata = inverted(storage.read(metadata_at, COUNT * METADATA))
    assert found != data
    assert (metadata == sealed(found)) == (guard == "valid")
    assert space.storage.read(at, len(data)) == data


@pytest.mark.parametrize("metadata_first", [False, True])
@pytest.mark.parametrize("guard", ["stale", "valid"])
def test_what_is_stored_wrong_has_a_guard_that_says_so_or_does_not(
    space: Namespace, metadata_first: bool, guard: str
) -> None:
    data = random.Random(1).randbytes(COUNT * BLOCK)
    at, metadata_at = places(space)
    storage = seen(space, IoOpcode.WRITE, flip=2, guard=guard)
    if metadata_first:
        storage.write(metadata_at, inverted(sealed(data)))
    storage.write(at, data)
    if not metadata_first:
        storage.write(metadata_at, inverted(sealed(data)))
    storage.seal()
    stored = space.storage.read(at, len(data))
    metadata = inverted(space.storage.read(metadata_at, COUNT * METADATA))
    assert stored != data
    assert (metadata == sealed(stored)) == (guard == "valid")


@pytest.mark.parametrize("metadata_first", [False, True])
@pytest.mark.parametrize(("torn", "blocks"), [({"torn": 2}, 2), ({"torn_bytes": 700}, 1), ({"torn": 0}, 0)])
def test_metadata_is_torn_with_its_blocks(
    space: Namespace, metadata_first: bool, torn: dict[str, int], blocks: int
) -> None:
    at, metadata_at = places(space)
    storage = seen(space, IoOpcode.WRITE, **torn)
    if metadata_first:
        storage.write(metadata_at, b"M" * COUNT * METADATA)
    storage.write(at, b"D" * COUNT * BLOCK)
    if not metadata_first:
        storage.write(metadata_at, b"M" * COUNT * METADATA)
    stored = torn.get("torn_bytes", blocks * BLOCK)
    assert space.storage.read(at, COUNT * BLOCK) == (b"D" * stored).ljust(COUNT * BLOCK, b"\0")
    assert space.storage.read(metadata_at, COUNT * METADATA) == (b"M" * blocks * METADATA).ljust(
        COUNT * METADATA, b"\0"
    )
