"""SET_IRQS: eventfds assigned, replaced, taken away; masks; the triggers a client plays back."""

import errno
import os
import struct
from collections.abc import Callable

import pytest

from tests import raw
from tests.raw import BOOL, EVENTFD, INTX, MASK, MSI, MSIX, NONE, TRIGGER, UNMASK, RawPeer, fired
from tests.server.gadgets import Gadget

EventFds = Callable[[int], list[int]]


def fire(client: RawPeer, number: int) -> None:
    """Lets the gadget trigger MSI-X vector `number` (MSI: 0x100 + number)."""
    client.write(0, 0x18, number.to_bytes(4, "little"))


def set_level(client: RawPeer, level: int) -> None:
    client.write(0, 0x1C, level.to_bytes(4, "little"))


@pytest.mark.point("P49")
def test_a_message_too_short_for_its_fields_is_refused(client: RawPeer) -> None:
    whole = raw.set_irqs(MSIX, NONE | TRIGGER, 0, 0)
    assert client.refused(raw.set_irqs(MSIX, NONE | TRIGGER, 0, 0, argsz=19)) == errno.EINVAL
    assert client.refused(raw.message(raw.SET_IRQS, whole[16:-1])) == errno.EINVAL
    client.ask(whole)


@pytest.mark.point("P50")
def test_one_action_and_one_kind_of_data_and_nothing_else(client: RawPeer) -> None:
    valid = {kind | action for kind in (NONE, BOOL) for action in (MASK, UNMASK, TRIGGER)} | {
        EVENTFD | TRIGGER
    }
    for flags in (*range(64), 64 | NONE | TRIGGER, 0x8000_0000 | NONE | TRIGGER):
        request = raw.set_irqs(MSIX, flags, 0, 1, b"\0" if flags & BOOL else b"")
        if flags in valid:
            client.ask(request)
        else:
            assert client.refused(request) == errno.EINVAL


@pytest.mark.point("P51")
@pytest.mark.parametrize(
    ("start", "count"), [(64, 1), (0, 65), (63, 2), (1, 0xFFFF_FFFF), (0xFFFF_FFFF, 1), (0xFFFF_FFFF, 2)]
)
def test_vectors_beyond_the_devices_are_refused(client: RawPeer, start: int, count: int) -> None:
    assert client.refused(raw.set_irqs(MSIX, NONE | TRIGGER, start, count)) == errno.EINVAL
    assert client.refused(raw.set_irqs(MSIX, EVENTFD | TRIGGER, start, count)) == errno.EINVAL


@pytest.mark.point("P51")
def test_an_interrupt_kind_beyond_the_five_is_refused(client: RawPeer) -> None:
    for index in (5, 0xFFFF_FFFF):
        assert client.refused(raw.set_irqs(index, NONE | TRIGGER, 0, 0)) == errno.EINVAL


@pytest.mark.point("P52")
def test_a_count_of_nothing_only_disables(client: RawPeer) -> None:
    client.ask(raw.set_irqs(MSIX, NONE | TRIGGER, 0, 0))
    for flags, start in ((NONE | TRIGGER, 1), (NONE | MASK, 0), (BOOL | TRIGGER, 0), (EVENTFD | TRIGGER, 0)):
        assert client.refused(raw.set_irqs(MSIX, flags, start, 0)) == errno.EINVAL


@pytest.mark.point("P53", "P66")
@pytest.mark.parametrize("index", [raw.ERR, raw.REQ])
def test_err_and_req_are_assigned_triggered_and_taken_away(
    client: RawPeer, gadget: Gadget, eventfds: EventFds, index: int
) -> None:
    [fd] = eventfds(1)
    vector = gadget.error_irq if index == raw.ERR else gadget.request_irq
    client.ask(raw.set_irqs(index, EVENTFD | TRIGGER), [fd])
    vector.trigger()
    assert fired(fd) == 1
    for flags, count in ((NONE | MASK, 1), (NONE | UNMASK, 1), (EVENTFD | UNMASK, 1), (NONE | TRIGGER, 2)):
        assert client.refused(raw.set_irqs(index, flags, 0, count)) == errno.EINVAL
    client.ask(raw.set_irqs(index, EVENTFD | TRIGGER))
    vector.trigger()
    assert fired(fd) == 0


@pytest.mark.point("P54")
def test_descriptors_in_the_wrong_number_or_place_are_refused_and_closed(
    client: RawPeer, eventfds: EventFds
) -> None:
    fds = eventfds(3)
    before = raw.open_descriptors()
    for flags, count, sent, data in (
        (NONE | TRIGGER, 1, 1, b""),
        (BOOL | TRIGGER, 1, 1, b"\1"),
        (EVENTFD | TRIGGER, 1, 2, b""),
        (EVENTFD | TRIGGER, 3, 2, b""),
        (EVENTFD | TRIGGER, 1, 1, b"\1"),
        (EVENTFD | UNMASK, 1, 1, b""),
        (EVENTFD, 1, 1, b""),
    ):
        assert client.refused(raw.set_irqs(MSIX, flags, 0, count, data), fds[:sent]) == errno.EINVAL
    assert client.refused(raw.set_irqs(7, EVENTFD | TRIGGER), fds[:1]) == errno.EINVAL
    assert raw.open_descriptors() == before


@pytest.mark.point("P55", "P59")
def test_each_of_64_vectors_assigned_in_runs_signals_its_own_eventfd(
    client: RawPeer, eventfds: EventFds
) -> None:
    fds = eventfds(64)
    for start in range(0, 64, 16):
        client.ask(raw.set_irqs(MSIX, EVENTFD | TRIGGER, start, 16), fds[start : start + 16])
    for number in range(64):
        for _ in range(number + 1):
            fire(client, number)
    assert [fired(fd) for fd in fds] == list(range(1, 65))


@pytest.mark.point("P56", "P59")
def test_vectors_in_the_middle_can_be_taken_away(client: RawPeer, eventfds: EventFds) -> None:
    fds = eventfds(64)
    client.ask(raw.set_irqs(MSIX, EVENTFD | TRIGGER, 0, 64), fds)
    client.ask(raw.set_irqs(MSIX, EVENTFD | TRIGGER, 3, 1))
    client.ask(raw.set_irqs(MSIX, EVENTFD | TRIGGER, 16, 32))
    for number in range(64):
        fire(client, number)
    assert [fired(fd) for fd in fds] == [int(n != 3 and not 16 <= n < 48) for n in range(64)]


@pytest.mark.point("P59")
def test_msix_may_be_enabled_with_no_vector_and_get_them_one_by_one(
    client: RawPeer, gadget: Gadget, eventfds: EventFds
) -> None:
    client.ask(raw.set_irqs(MSIX, EVENTFD | TRIGGER, 0, 1))
    fds = eventfds(3)
    for number, fd in enumerate(fds):
        client.ask(raw.set_irqs(MSIX, EVENTFD | TRIGGER, number, 1), [fd])
        fire(client, number)
    assert [fired(fd) for fd in fds] == [1, 1, 1]
    fire(client, 9)
    assert gadget.msix[9].fired == 1


@pytest.mark.point("P57")
def test_a_new_eventfd_replaces_the_old_which_is_closed(client: RawPeer, eventfds: EventFds) -> None:
    old, new = eventfds(2)
    client.ask(raw.set_irqs(MSIX, EVENTFD | TRIGGER, 5, 1), [old])
    before = raw.open_descriptors()
    for _ in range(100):
        client.ask(raw.set_irqs(MSIX, EVENTFD | TRIGGER, 5, 1), [new])
    assert raw.open_descriptors() == before
    fire(client, 5)
    assert (fired(old), fired(new)) == (0, 1)


@pytest.mark.point("P58", "P64")
def test_disabling_one_kind_silences_it_alone(client: RawPeer, eventfds: EventFds) -> None:
    msix, msi, line = eventfds(3)
    before = raw.open_descriptors()
    client.ask(raw.set_irqs(MSIX, EVENTFD | TRIGGER), [msix])
    client.ask(raw.set_irqs(MSI, EVENTFD | TRIGGER), [msi])
    client.ask(raw.set_irqs(INTX, EVENTFD | TRIGGER), [line])
    client.ask(raw.set_irqs(MSIX, NONE | TRIGGER, 0, 0))
    for number in (0, 0x100):
        fire(client, number)
    set_level(client, 1)
    assert (fired(msix), fired(msi), fired(line)) == (0, 1, 1)
    client.ask(raw.set_irqs(MSI, NONE | TRIGGER, 0, 0))
    client.ask(raw.set_irqs(INTX, NONE | TRIGGER, 0, 0))
    fire(client, 0x100)
    set_level(client, 0)
    set_level(client, 1)
    assert (fired(msi), fired(line)) == (0, 0)
    assert raw.open_descriptors() == before


@pytest.mark.point("P60")
def test_a_client_plays_vectors_back(client: RawPeer, eventfds: EventFds) -> None:
    fds = eventfds(4)
    client.ask(raw.set_irqs(MSIX, EVENTFD | TRIGGER, 0, 4), fds)
    client.ask(raw.set_irqs(MSIX, NONE | TRIGGER, 1, 2))
    assert [fired(fd) for fd in fds] == [0, 1, 1, 0]
    client.ask(raw.set_irqs(MSIX, BOOL | TRIGGER, 0, 4, b"\1\0\0\1"))
    assert [fired(fd) for fd in fds] == [1, 0, 0, 1]
    for data in (b"", b"\1\1\1", b"\1" * 5):
        assert client.refused(raw.set_irqs(MSIX, BOOL | TRIGGER, 0, 4, data)) == errno.EINVAL
    assert [fired(fd) for fd in fds] == [0, 0, 0, 0]


@pytest.mark.point("P61", "P63")
def test_intx_masks_itself_and_unmasking_signals_while_the_line_is_up(
    client: RawPeer, eventfds: EventFds
) -> None:
    for flags in (NONE | MASK, NONE | UNMASK, BOOL | UNMASK):
        client.ask(raw.set_irqs(INTX, flags, 0, 1, b"\1" if flags & BOOL else b""))
    [line] = eventfds(1)
    client.ask(raw.set_irqs(INTX, EVENTFD | TRIGGER), [line])
    set_level(client, 1)
    assert fired(line) == 1
    set_level(client, 0)
    set_level(client, 1)
    assert fired(line) == 0
    client.ask(raw.set_irqs(INTX, NONE | UNMASK))
    assert fired(line) == 1
    set_level(client, 0)
    client.ask(raw.set_irqs(INTX, NONE | UNMASK))
    assert fired(line) == 0
    client.ask(raw.set_irqs(INTX, NONE | MASK))
    set_level(client, 1)
    assert fired(line) == 0


@pytest.mark.point("P62")
def test_the_clients_resample_descriptor_unmasks_intx(client: RawPeer, eventfds: EventFds) -> None:
    line, resample = eventfds(2)
    before = raw.open_descriptors()
    client.ask(raw.set_irqs(INTX, EVENTFD | TRIGGER), [line])
    client.ask(raw.set_irqs(INTX, EVENTFD | UNMASK), [resample])
    set_level(client, 1)
    assert fired(line) == 1
    for _ in range(3):
        os.eventfd_write(resample, 1)
        # The server has seen the descriptor by the time it answers twice.
        client.ask(raw.device_info())
        client.ask(raw.device_info())
        assert fired(line) == 1
    set_level(client, 0)
    client.ask(raw.set_irqs(INTX, NONE | TRIGGER, 0, 0))
    assert raw.open_descriptors() == before


@pytest.mark.point("P65")
def test_a_full_eventfd_neither_blocks_nor_breaks_the_device(client: RawPeer) -> None:
    full = os.eventfd(0)  # a blocking one
    os.eventfd_write(full, 0xFFFF_FFFF_FFFF_FFFE)
    client.ask(raw.set_irqs(MSIX, EVENTFD | TRIGGER), [full])
    fire(client, 0)
    os.close(full)
    fire(client, 0)


@pytest.mark.point("P65")
def test_a_descriptor_that_is_no_eventfd_is_refused_and_closed(client: RawPeer) -> None:
    pipe = os.pipe()
    file = os.open("/dev/null", os.O_RDWR)
    before = raw.open_descriptors()
    for fd in (*pipe, file):
        assert client.refused(raw.set_irqs(MSIX, EVENTFD | TRIGGER), [fd]) == errno.EINVAL
    assert raw.open_descriptors() == before
    for fd in (*pipe, file):
        os.close(fd)


@pytest.mark.point("P54", "P59")
def test_a_refused_assignment_changes_nothing(client: RawPeer, eventfds: EventFds) -> None:
    fds = eventfds(2)
    client.ask(raw.set_irqs(MSIX, EVENTFD | TRIGGER, 0, 2), fds)
    reader, writer = os.pipe()
    assert client.refused(raw.set_irqs(MSIX, EVENTFD | TRIGGER, 0, 2), [fds[1], reader]) == errno.EINVAL
    fire(client, 0)
    fire(client, 1)
    assert [fired(fd) for fd in fds] == [1, 1]
    os.close(reader)
    os.close(writer)


@pytest.mark.point("P85")
def test_a_masked_vector_shows_as_pending_and_fires_when_unmasked(
    client: RawPeer, eventfds: EventFds
) -> None:
    [fd] = eventfds(1)
    client.ask(raw.set_irqs(MSIX, EVENTFD | TRIGGER, 5, 1), [fd])
    client.ask(raw.set_irqs(MSIX, NONE | MASK, 5, 1))
    fire(client, 5)
    assert fired(fd) == 0
    assert struct.unpack("<Q", client.read(4, 0x2000, 8)) == (1 << 5,)
    client.ask(raw.set_irqs(MSIX, NONE | UNMASK, 5, 1))
    assert fired(fd) == 1
    assert client.read(4, 0x2000, 8) == bytes(8)
