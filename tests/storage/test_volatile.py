"""A volatile write cache: nothing of it is seen while the power is on, and by no rule but its own after."""

from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outboard.errors import StorageError
from outboard.storage import Loss, NullStorage, RamStorage, VolatileStorage, fast_of, open_storage

SIZE, UNIT = 8192, 512

Operation = tuple[str, int, int, int]
"""What, where, how much, and a byte to be written."""


def operations() -> st.SearchStrategy[list[Operation]]:
    return st.lists(
        st.tuples(
            st.sampled_from(["write", "write", "write", "zeroes", "discard", "persist", "flush", "back"]),
            st.integers(0, SIZE - 1),
            st.integers(0, 2048),
            st.integers(1, 255),
        ),
        max_size=24,
    )


class Model:
    """Each byte as it is, and all that it may be after a cut; cut in units where a write is torn."""

    def __init__(self) -> None:
        self.now = bytearray(SIZE)
        self.possible: list[set[int]] = [{0} for _ in range(SIZE)]

    def do(self, disk: VolatileStorage, operation: Operation) -> None:
        what, offset, size, byte = operation
        size = min(size, SIZE - offset)
        touched = range(offset, offset + size)
        if what == "write":
            disk.write(offset, bytes([byte]) * size)
        elif what == "zeroes":
            disk.write_zeroes(offset, size)
        elif what == "discard":
            disk.discard(offset, size)
        elif what == "persist":
            disk.persist(offset, size)
        elif what == "flush":
            disk.flush()
        else:
            disk.write_back()
        if what in ("write", "zeroes", "discard"):
            for at in touched:
                self.now[at] = byte if what == "write" else 0
                self.possible[at].add(self.now[at])
        elif what == "persist" or what == "flush":
            for at in touched if what == "persist" else range(SIZE):
                self.possible[at] = {self.now[at]}


@given(operations(), st.integers(0, 1000), st.sampled_from([1, 700, 5000, 1 << 20]))
@settings(max_examples=200)
def test_a_cut_leaves_what_was_durable_or_written_since(done: list[Operation], seed: int, cache: int) -> None:
    disk, model = VolatileStorage(RamStorage(SIZE), cache=cache, unit=UNIT), Model()
    for operation in done:
        model.do(disk, operation)
        assert disk.read(0, SIZE) == model.now
    disk.cut(seed)
    left = disk.read(0, SIZE)
    assert all(byte in possible for byte, possible in zip(left, model.possible, strict=True))
    assert disk.unflushed == 0
    disk.close()


@given(operations())
def test_what_is_closed_in_order_loses_nothing(done: list[Operation]) -> None:
    ram = RamStorage(SIZE)
    disk, model = VolatileStorage(ram), Model()
    for operation in done:
        model.do(disk, operation)
    disk.write_back()
    assert ram.read(0, SIZE) == model.now
    disk.close()


def test_the_same_seed_leaves_the_same_and_others_something_else() -> None:
    def remains(seed: int) -> tuple[Loss, bytes]:
        disk = VolatileStorage(RamStorage(SIZE))
        chance = Random(7)
        for number in range(1, 40):
            disk.write(chance.randrange(SIZE // UNIT - 4) * UNIT, bytes([number]) * 4 * UNIT)
        loss = disk.cut(seed)
        left = disk.read(0, SIZE)
        disk.close()
        return loss, left

    assert remains(1) == remains(1)
    losses = [remains(seed)[0] for seed in range(20)]
    assert len(set(losses)) > 10
    assert all(sum(loss) == 39 for loss in losses)
    assert any(loss.torn for loss in losses)


def test_a_write_is_torn_at_units_only() -> None:
    torn = 0
    for seed in range(200):
        disk = VolatileStorage(RamStorage(SIZE), unit=1024)
        disk.write(512, b"x" * 4096)
        torn += disk.cut(seed).torn
        left = disk.read(0, SIZE)
        edges = [at for at in range(1, SIZE) if left[at] != left[at - 1]]
        assert all(at % 1024 == 0 or at in (512, 4608) for at in edges)
        disk.close()
    assert torn > 20


def test_a_single_unit_is_never_torn() -> None:
    for seed in range(100):
        disk = VolatileStorage(RamStorage(SIZE))
        disk.write(512, b"x" * 512)
        assert disk.cut(seed).torn == 0
        disk.close()


def test_a_flush_that_lies_loses_what_it_promised() -> None:
    lost = 0
    for seed in range(20):
        disk = VolatileStorage(RamStorage(SIZE))
        disk.lie = True
        disk.write(0, b"promised")
        disk.persist(0, 8)
        disk.flush()
        lost += disk.cut(seed).lost
        disk.close()
    assert lost > 2


def test_what_was_made_durable_alone_does_not_take_the_rest_with_it() -> None:
    lost = 0
    for seed in range(20):
        disk = VolatileStorage(RamStorage(SIZE))
        disk.write(0, b"older")
        disk.write(4096, b"other")
        disk.write(0, b"newer")
        disk.persist(0, 5)
        assert disk.unflushed == 3
        lost += disk.cut(seed).lost
        assert disk.read(0, 5) == b"newer"
        disk.close()
    assert lost > 10


def test_memory_is_bounded_and_the_oldest_reaches_the_medium() -> None:
    ram = RamStorage(1 << 20)
    disk = VolatileStorage(ram, cache=64 << 10)
    for block in range(128):
        disk.write(block * 4096, bytes([block + 1]) * 4096)
        disk.discard(block * 4096 + 2048, 10)
    assert disk.unflushed <= 16 * 2
    assert ram.read(0, 1) == b"\1"
    assert disk.read(127 * 4096, 1) == b"\x80"
    assert ram.read(127 * 4096, 1) == b"\0"
    disk.close()


def test_a_discard_that_promises_nothing_is_passed_on() -> None:
    ram = RamStorage(SIZE)
    ram.discard_zeroes = False
    disk = VolatileStorage(ram)
    disk.write(0, b"kept")
    disk.discard(0, 4096)
    assert disk.read(0, 4) == b"kept"
    disk.close()


def test_it_is_named_on_the_command_line_and_kept_from_compiled_code(tmp_path: Path) -> None:
    disk = open_storage(f"volatile:{tmp_path}/disk.img,size=1M")
    assert isinstance(disk, VolatileStorage)
    assert (disk.size, fast_of(disk)) == (1 << 20, None)
    disk.write(0, b"held")
    assert (tmp_path / "disk.img").read_bytes()[:4] == bytes(4)
    disk.close()
    assert (tmp_path / "disk.img").read_bytes()[:4] == b"held"
    for spec in ("volatile:ram:1M", "volatile:null:1T"):
        open_storage(spec).close()


def test_ranges_outside_and_caches_of_nothing_are_refused() -> None:
    disk = VolatileStorage(RamStorage(SIZE))
    for reach in (
        lambda: disk.read(SIZE, 1),
        lambda: disk.write(SIZE - 1, b"xx"),
        lambda: disk.discard(-1, 1),
        lambda: disk.write_zeroes(0, SIZE + 1),
        lambda: disk.persist(SIZE, 1),
    ):
        with pytest.raises(StorageError, match="outside"):
            reach()
    disk.close()
    for wrong in ({"cache": 0}, {"unit": 0}):
        with pytest.raises(StorageError, match="1 at least"):
            VolatileStorage(NullStorage(SIZE), **wrong)


def test_it_grows_with_what_is_below() -> None:
    below = NullStorage(SIZE)
    disk = VolatileStorage(below)
    below.size = 2 * SIZE
    assert disk.size == 2 * SIZE
    disk.size, disk.discard_zeroes = SIZE, False
    assert (below.size, below.discard_zeroes) == (SIZE, False)


def test_what_is_below_is_let_go_though_it_takes_no_more() -> None:
    class Broken(RamStorage):
        closed = False

        def write(self, offset: int, data: object) -> None:
            raise StorageError("the medium is broken")

        def close(self) -> None:
            self.closed = True
            super().close()

    below = Broken(SIZE)
    disk = VolatileStorage(below)
    disk.write(0, b"lost")
    with pytest.raises(StorageError, match="broken"):
        disk.close()
    assert below.closed
    disk.close()
