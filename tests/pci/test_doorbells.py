"""Doorbells on a device: heard by message and by eventfd alike, and nothing of the client's is trusted."""

import os
from fcntl import F_GETFL, F_SETFL, fcntl

import pytest

from outboard import Bar, Device, state
from outboard.device import MMAP
from outboard.errors import DefinitionError, StateError
from outboard.loop import Loop
from outboard.testing.client import TestClient
from tests.raw import open_descriptors

Ring = tuple[str, int, int | None]


class Ringing(Device):
    """One of each kind."""

    mmio = Bar(0, size=0x2000)
    plain = mmio.doorbell(0x100, count=3, stride=8)
    shadowed = mmio.doorbell(0x200, size=8, count=3, shadow=True)
    matched = mmio.doorbell(0x300, size=2, matches=[5, 9])
    crowd = mmio.doorbell(0x400, count=3, shared=True)
    shadowed_crowd = mmio.doorbell(0x500, count=600, shadow=True, shared=True)
    unheard = mmio.doorbell(0xF00, shadow=True)

    def __init__(self, **replacements: object) -> None:
        super().__init__(**replacements)
        self.rings: list[Ring] = []

    def take(self) -> list[Ring]:
        rings, self.rings = self.rings, []
        return rings

    @plain.on_ring
    def plain_rung(self, index: int, value: int | None) -> None:
        self.rings.append(("plain", index, value))

    @shadowed.on_ring
    def shadowed_rung(self, index: int, value: int) -> None:
        self.rings.append(("shadowed", index, value))

    @matched.on_ring
    def matched_rung(self, index: int, value: int) -> None:
        self.rings.append(("matched", index, value))

    @crowd.on_ring
    def crowd_rung(self, index: int, value: int | None) -> None:
        self.rings.append(("crowd", index, value))

    @shadowed_crowd.on_ring
    def shadowed_crowd_rung(self, index: int, value: int) -> None:
        self.rings.append(("shadowed crowd", index, value))
        if value == 13:
            raise RuntimeError("the author's bug")


@pytest.fixture
def device() -> Ringing:
    return Ringing()


def served(device: Ringing) -> Loop:
    loop = Loop()
    device.attach(loop)
    return loop


def signal(loop: Loop, fd: int, times: int = 1) -> None:
    for _ in range(times):
        os.eventfd_write(fd, 1)
    loop.run_once(0)


def test_a_write_by_message_rings_with_its_value(device: Ringing) -> None:
    device.region_write(0, 0x108, b"\x07\0\0\0")
    device.region_write(0, 0x210, bytes(7) + b"\x80")
    device.region_write(0, 0x404, b"\x01\0\0\0")
    device.region_write(0, 0x500 + 4 * 599, b"\x02\0\0\0")
    assert device.take() == [
        ("plain", 1, 7),
        ("shadowed", 2, 1 << 63),
        ("crowd", 1, 1),
        ("shadowed crowd", 599, 2),
    ]
    assert device.plain[1] == 7
    assert device.region_read(0, 0x108, 4) == b"\x07\0\0\0"
    assert not device.unhandled


def test_a_write_across_doorbells_rings_each_and_part_of_one_keeps_the_rest(device: Ringing) -> None:
    device.region_write(0, 0x400, b"\x01\0\0\0\x02\x01\0\0")
    device.region_write(0, 0x405, b"\xff")
    assert device.take() == [("crowd", 0, 1), ("crowd", 1, 0x102), ("crowd", 1, 0xFF02)]


def test_only_the_values_that_are_matched_ring(device: Ringing) -> None:
    for value in (5, 6, 9):
        device.region_write(0, 0x300, value.to_bytes(2, "little"))
    assert device.take() == [("matched", 0, 5), ("matched", 1, 9)]


def test_an_eventfd_rings_with_the_value_of_the_shadow_or_of_the_match_or_none(device: Ringing) -> None:
    loop = served(device)
    device.shadowed.memory[8:16] = (1 << 40).to_bytes(8, "little")
    signal(loop, device.shadowed.fd(1))
    signal(loop, device.matched.fd(1))
    signal(loop, device.plain.fd(2), times=3)
    assert device.take() == [("shadowed", 1, 1 << 40), ("matched", 1, 9), ("plain", 2, None)]
    assert not loop.run_once(0)
    device.disconnected()
    loop.close()


def test_one_eventfd_for_all_rings_those_whose_shadow_changed_or_every_one(device: Ringing) -> None:
    loop = served(device)
    bells = device.shadowed_crowd
    assert len({bells.fd(index) for index in range(600)}) == 1
    device.region_write(0, 0x500, b"\x01\0\0\0")
    bells.memory[8 * 7] = 3
    bells.memory[8 * 599] = 4
    signal(loop, bells.fd(0))
    signal(loop, bells.fd(0))
    signal(loop, device.crowd.fd(0))
    assert device.take() == [
        ("shadowed crowd", 0, 1),
        ("shadowed crowd", 7, 3),
        ("shadowed crowd", 599, 4),
        *[("crowd", index, None) for index in range(3)],
    ]
    device.disconnected()
    loop.close()


def test_a_handler_that_fails_costs_no_other_doorbell_its_ring(device: Ringing) -> None:
    loop = served(device)
    reported: list[Exception] = []
    loop.report = lambda error, doing: reported.append(error)
    bells = device.shadowed_crowd
    bells.memory[0], bells.memory[8] = 13, 1
    signal(loop, bells.fd(0))
    assert device.take() == [("shadowed crowd", 0, 13), ("shadowed crowd", 1, 1)]
    assert [str(error) for error in reported] == ["the author's bug"]
    device.disconnected()
    loop.close()


def test_a_client_that_takes_o_nonblock_away_and_reads_the_eventfd_empty_blocks_nobody(
    device: Ringing,
) -> None:
    loop = served(device)
    fd, other = device.plain.fd(0), device.unheard.fd(0)
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~os.O_NONBLOCK)
    # Both are ready in one wait, the other first: in between the client reads.

    def read_it_empty() -> None:
        os.eventfd_read(other)
        os.preadv(fd, [bytearray(8)], -1, os.RWF_NOWAIT)

    loop.watch(other, read_it_empty)
    os.eventfd_write(other, 1)
    os.eventfd_write(fd, 1)
    loop.run_once(0)
    assert device.take() == []
    signal(loop, fd)
    assert device.take() == [("plain", 0, None)]
    loop.unwatch(other)
    device.disconnected()
    loop.close()


def test_a_fast_path_takes_the_eventfds_for_itself_and_gives_them_back(device: Ringing) -> None:
    loop = served(device)
    device.shadowed.heard = False
    fd = device.shadowed.fd(0)
    device.shadowed.memory[0] = 6
    signal(loop, fd)
    assert device.take() == []
    assert os.eventfd_read(fd) == 1
    signal(loop, fd)
    device.shadowed.heard = True
    loop.run_once(0)
    assert device.take() == [("shadowed", 0, 6)]
    device.disconnected()
    loop.close()


def test_doorbells_without_a_handler_are_left_to_whoever_waits_for_them(device: Ringing) -> None:
    loop = served(device)
    fd = device.unheard.fd(0)
    signal(loop, fd)
    assert os.eventfd_read(fd) == 1
    device.region_write(0, 0xF00, b"\x05\0\0\0")
    assert device.unheard[0] == 5
    device.disconnected()
    loop.close()


def test_a_reset_clears_the_values_and_forgets_rings_that_nobody_heard(device: Ringing) -> None:
    loop = served(device)
    device.region_write(0, 0x100, b"\x01\0\0\0")
    device.take()
    os.eventfd_write(device.plain.fd(0), 1)
    device.reset()
    loop.run_once(0)
    assert device.take() == []
    assert device.plain[0] == 0
    signal(loop, device.plain.fd(0))
    assert device.take() == [("plain", 0, None)]
    device.disconnected()
    loop.close()


def test_eventfds_end_with_the_client_and_memory_with_the_device() -> None:
    before = open_descriptors()
    device = Ringing()
    memories = open_descriptors()
    for _ in range(3):
        loop = served(device)
        assert len(list(device.io_event_fds(0, True))) == 3 + 3 + 2 + 3 + 600 + 1
        assert [part.offset for part in device.io_event_fds(1, True)] == []
        device.disconnected()
        loop.close()
        assert open_descriptors() == memories
    device.shadowed.fd(0)
    del device
    assert open_descriptors() == before


def test_the_index_of_a_doorbell_is_checked(device: Ringing) -> None:
    assert len(device.plain) == 3
    for index in (-1, 3):
        with pytest.raises(IndexError, match=r"plain\[-?\d\]: there are 3 doorbells"):
            device.plain[index]


def test_doorbells_in_an_io_bar_say_so() -> None:
    class Ports(Device):
        ports = Bar(0, size=0x10, io=True)
        bell = ports.doorbell(4, size=2)

    device = Ports()
    [part] = device.io_event_fds(0, True)
    assert (part.offset, part.size, part.pio, part.match, part.shadow_fd) == (4, 2, True, None, None)
    device.disconnected()


def test_what_lies_beside_a_doorbell_is_no_memory(device: Ringing) -> None:
    device.region_write(0, 0x1800, b"\x01")
    assert device.unhandled
    assert not device.regions[0].flags & MMAP


def test_doorbells_replaced_keep_their_handler_and_may_be_taken_out() -> None:
    class More(Ringing):
        plain = Ringing.mmio.doorbell(0x1300, count=8)

    device: Ringing = More()
    device.region_write(0, 0x131C, b"\x01\0\0\0")
    assert device.take() == [("plain", 7, 1)]
    device = Ringing(plain=None)
    assert device.plain is None
    device.region_write(0, 0x100, b"\x01\0\0\0")
    assert device.take() == []


def test_a_second_handler_of_one_doorbell_is_refused() -> None:
    bell = Bar(0, size=16).doorbell(0)
    bell.on_ring(Ringing.plain_rung)
    with pytest.raises(DefinitionError, match="is plain_rung already: override that method"):
        bell.on_ring(Ringing.crowd_rung)


def test_a_handler_overridden_in_a_subclass_is_the_one_that_runs() -> None:
    class Quiet(Ringing):
        def plain_rung(self, index: int, value: int | None) -> None:
            self.rings.append(("quietly", index, value))

    with TestClient(device := Quiet()) as client:
        client.doorbells(0).at(0x100).ring(4)
        assert device.take() == [("quietly", 0, None)]
        client.bar(0).write32(0x100, 4)
        assert device.take() == [("quietly", 0, 4)]


def test_a_ring_that_a_stopped_device_has_not_heard_is_heard_where_it_goes_on(device: Ringing) -> None:
    loop = served(device)
    device.stop_device()
    device.shadowed.memory[8] = 4
    device.shadowed_crowd.memory[8 * 99] = 5
    for fd in (device.shadowed.fd(1), device.shadowed_crowd.fd(99), device.matched.fd(1), device.plain.fd(0)):
        signal(loop, fd)
    assert device.take() == []
    saved = device.save_state()

    moved = Ringing()
    elsewhere = served(moved)
    moved.stop_device()
    moved.restore_state(saved)
    assert moved.take() == []
    moved.run_device()
    elsewhere.run_once(0)
    rings = [("plain", 0, None), ("shadowed", 1, 4), ("matched", 1, 9), ("shadowed crowd", 99, 5)]
    assert moved.take() == rings
    assert moved.shadowed[1] == 4

    # It may also go on where it was: the eventfds are as they were.
    device.run_device()
    loop.run_once(0)
    assert sorted(device.take()) == sorted(rings)
    for each, its_loop in ((device, loop), (moved, elsewhere)):
        each.disconnected()
        its_loop.close()


@pytest.mark.parametrize(
    "change",
    [
        {"values": [1, 2]},
        {"last": [0] * 4},
        {"waiting": [3]},
        {"waiting": [-1]},
        {"values": [0, 0, 1 << 32]},
        {"values": [0, 0, -1]},
        {"values": [0, 0, "x"]},
        {"waiting": None},
    ],
)
def test_a_state_that_doorbells_cannot_have_is_refused(device: Ringing, change: dict[str, object]) -> None:
    sections = state.decode(device.save_state())
    sections["doorbells/plain"] |= change
    with pytest.raises(StateError, match="is not one of Ringing"):
        Ringing().restore_state(state.encode(sections))


def test_a_device_whose_client_goes_while_it_is_stopped_hears_the_next_one(device: Ringing) -> None:
    loop = served(device)
    device.stop_device()
    device.disconnected()
    device.attach(loop)
    signal(loop, device.plain.fd(1))
    assert device.take() == [("plain", 1, None)]
    device.disconnected()
    loop.close()


def test_a_device_that_takes_time_to_become_quiet_is_not_rung_meanwhile() -> None:
    class Slow(Ringing):
        def on_quiesce(self) -> bool:
            return False

        def on_resume(self) -> None:
            self.rings.append(("resumed", 0, None))

    loop = served(device := Slow())
    quiet: list[bool] = []
    assert not device.quiesce(lambda: quiet.append(True))
    fd = device.plain.fd(0)
    signal(loop, fd)
    assert device.take() == []
    device.quiesced()
    device.unquiesce()
    loop.run_once(0)
    assert quiet == [True]
    assert device.take() == [("resumed", 0, None), ("plain", 0, None)]
    device.disconnected()
    loop.close()
