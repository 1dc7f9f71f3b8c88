# ruff: noqa: PT009 (`assert_` raises an interrupt line)
"""Vectors over eventfds: MSI, MSI-X, ERR and REQ; assignment, masks, hostile requests."""

import os
import select
import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outboard import Device, IrqAction, IrqData
from outboard.errors import RequestRefused
from outboard.loop import Loop
from tests.pci.interrupting import (
    ALL,
    BOOL,
    CONFIG,
    ERR,
    EVENTFD,
    INTX,
    MASK,
    MSI,
    MSIX,
    NONE,
    REQ,
    TRIGGER,
    UNMASK,
    Client,
    Interrupting,
    assign,
    open_descriptors,
    source,
)


@pytest.mark.point("P48")
def test_every_index_says_how_many_vectors_it_has(device: Interrupting) -> None:
    assert device.interrupts == (1, 4, 64, 1, 1)
    assert Device().interrupts == (0, 0, 0, 1, 1)


@pytest.mark.point("P55")
def test_a_trigger_adds_one_to_its_own_eventfd_and_no_other(device: Interrupting, client: Client) -> None:
    assign(device, MSIX, 0, [client.give() for _ in range(4)])
    device.msix[2].trigger()
    device.msix[2].trigger()
    assert client.counts() == [0, 0, 2, 0]


@pytest.mark.point("P56", "PCI03")
@pytest.mark.parametrize("number", [0, 1, 3])
def test_one_vector_is_de_assigned_without_the_others(
    device: Interrupting, client: Client, number: int
) -> None:
    assign(device, MSIX, 0, [client.give() for _ in range(4)])
    assign(device, MSIX, number, [], count=1)
    for vector in device.msix[:4]:
        vector.trigger()
    assert client.counts() == [int(i != number) for i in range(4)]
    assert device.msix[number].fired == 1


@pytest.mark.point("P57")
def test_another_descriptor_replaces_and_closes_the_old_one(device: Interrupting, client: Client) -> None:
    first = client.give()
    assign(device, MSIX, 5, [first])
    assign(device, MSIX, 5, [client.give()])
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(first)
    device.msix[5].trigger()
    assert client.counts() == [0, 1]


@pytest.mark.point("P58")
@pytest.mark.parametrize("index", ALL)
def test_a_disabled_index_is_silent_and_closes_its_descriptors(
    device: Interrupting, client: Client, index: int
) -> None:
    given = client.give()
    assign(device, index, 0, [given])
    device.set_irqs(index, TRIGGER, NONE, 0, 0)
    source(device, index)()
    assert client.count() == 0
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(given)


@pytest.mark.point("P59")
def test_vectors_are_assigned_in_runs(device: Interrupting, client: Client) -> None:
    for start in range(0, 64, 8):
        assign(device, MSIX, start, [client.give() for _ in range(8)])
    assign(device, MSIX, 10, [], count=3)
    assign(device, MSIX, 12, [client.give()])
    for vector in device.msix:
        vector.trigger()
    assert client.counts() == [int(i not in (10, 11, 12)) for i in range(64)] + [1]


@pytest.mark.point("P60")
def test_the_client_fires_vectors_for_a_test(device: Interrupting, client: Client) -> None:
    assign(device, MSIX, 0, [client.give() for _ in range(4)])
    device.set_irqs(MSIX, TRIGGER, BOOL, 0, 4, bools=b"\0\1\0\1")
    assert client.counts() == [0, 1, 0, 1]
    device.set_irqs(MSIX, TRIGGER, NONE, 1, 2)
    assert client.counts() == [0, 1, 1, 0]
    assert [vector.fired for vector in device.msix[:4]] == [0] * 4


@pytest.mark.point("P64")
def test_the_indexes_do_not_share_state(device: Interrupting, client: Client) -> None:
    for index in ALL:
        assign(device, index, 0, [client.give()])
    device.set_irqs(MSIX, TRIGGER, NONE, 0, 0)
    device.set_irqs(MSI, MASK, NONE, 0, 1)
    for index in ALL:
        source(device, index)()
    assert client.counts() == [1, 0, 0, 1, 1]


@pytest.mark.point("P66")
@pytest.mark.parametrize("index", [ERR, REQ])
def test_err_and_req_are_assigned_and_de_assigned(device: Interrupting, client: Client, index: int) -> None:
    assign(device, index, 0, [client.give()])
    source(device, index)()
    assert client.count() == 1
    assign(device, index, 0, [], count=1)
    source(device, index)()
    assert client.count() == 0


def test_a_vector_nobody_listens_to_only_counts(device: Interrupting) -> None:
    device.msix[3].trigger()
    device.set_irqs(MSIX, MASK, NONE, 3, 1)
    device.msix[3].trigger()
    assert device.msix[3].fired == 2
    assert not device.msix[3].pending


@pytest.mark.point("PCI03")
@pytest.mark.parametrize("index", [MSI, MSIX])
def test_a_vector_masked_by_the_client_fires_once_when_unmasked(
    device: Interrupting, client: Client, index: int
) -> None:
    vectors = device.msi if index == MSI else device.msix
    assign(device, index, 0, [client.give(), client.give()])
    device.set_irqs(index, MASK, BOOL, 0, 2, bools=b"\1\0")
    for _ in range(3):
        vectors[0].trigger()
        vectors[1].trigger()
    assert client.counts() == [0, 3]
    assert vectors[0].masked
    assert vectors[0].pending
    device.set_irqs(index, UNMASK, NONE, 0, 1)
    assert client.counts() == [1, 0]
    device.set_irqs(index, UNMASK, NONE, 0, 1)
    assert client.counts() == [0, 0]


def test_the_msi_mask_register_holds_back_and_its_pending_register_shows_it(
    device: Interrupting, client: Client
) -> None:
    offset = device.config.load(0x34, 1)
    while device.config.load(offset, 1) != 5:
        offset = device.config.load(offset + 1, 1)
    assign(device, MSI, 0, [client.give() for _ in range(4)])
    device.region_write(CONFIG, offset + 0x10, b"\x06\0\0\0")
    for vector in device.msi:
        vector.trigger()
    assert client.counts() == [1, 0, 0, 1]
    assert device.region_read(CONFIG, offset + 0x14, 4) == b"\x06\0\0\0"
    device.region_write(CONFIG, offset + 0x10, b"\x02")
    assert client.counts() == [0, 0, 1, 0]
    assert device.region_read(CONFIG, offset + 0x14, 4) == b"\x02\0\0\0"


@pytest.mark.point("P85")
def test_the_msix_table_masks_and_the_pba_shows_what_is_pending(device: Interrupting, client: Client) -> None:
    assign(device, MSIX, 0, [client.give() for _ in range(64)])
    device.region_write(0, 0x1000 + 16 * 33 + 12, b"\1\0\0\0")
    device.msix[33].trigger()
    device.msix[34].trigger()
    assert sum(client.counts()) == 1
    assert device.region_read(0, 0x2000, 8) == struct.pack("<Q", 1 << 33)
    assert device.region_read(0, 0x2004, 1) == b"\2"
    device.region_write(0, 0x2000, bytes(8))
    assert device.region_read(0, 0x2004, 1) == b"\2"
    device.region_write(0, 0x1000 + 16 * 33 + 12, b"\0")
    assert client.counts() == [int(i == 33) for i in range(64)]
    assert device.region_read(0, 0x2000, 8) == bytes(8)


@pytest.mark.point("P85")
def test_the_function_mask_holds_back_every_vector(device: Interrupting, client: Client) -> None:
    assign(device, MSIX, 0, [client.give(), client.give()])
    device.region_write(CONFIG, 0x43, b"\xc0")
    device.msix[1].trigger()
    device.region_write(0, 0x1000 + 12, b"\1")
    device.msix[0].trigger()
    assert client.counts() == [0, 0]
    assert device.region_read(0, 0x2000, 1) == b"\3"
    device.region_write(CONFIG, 0x43, b"\x80")
    assert client.counts() == [0, 1]
    assert device.msix.enabled


def test_a_data_path_hears_of_new_descriptors_before_the_old_ones_are_closed(
    device: Interrupting, client: Client
) -> None:
    given = [client.give(), client.give()]
    assign(device, MSIX, 2, [given[0]])
    seen = []

    def changed(number: int) -> None:
        os.fstat(given[0])
        seen.append((number, device.msix[number].fd))

    device.msix.on_change = changed
    assign(device, MSIX, 2, [given[1]])
    device.msix.on_change = None
    assert seen == [(2, given[1])]
    assert device.msix[3].fd == -1


@pytest.mark.point("P109")
def test_a_reset_drops_what_is_pending_and_keeps_the_descriptors(
    device: Interrupting, client: Client
) -> None:
    assign(device, MSIX, 0, [client.give()])
    assign(device, INTX, 0, [client.give()])
    device.region_write(CONFIG, 0x43, b"\xc0")
    device.msix[0].trigger()
    device.intx.assert_()
    client.counts()
    device.reset()
    assert not device.intx.asserted
    assert not device.msix[0].pending
    assert client.counts() == [0, 0]
    device.msix[0].trigger()
    device.set_irqs(INTX, UNMASK, NONE, 0, 1)
    device.intx.assert_()
    assert client.counts() == [1, 1]


@pytest.mark.point("P65")
@pytest.mark.parametrize("flags", [0, os.EFD_NONBLOCK])
def test_a_full_counter_does_not_block(device: Interrupting, client: Client, flags: int) -> None:
    assign(device, MSIX, 0, [client.give(flags)])
    os.eventfd_write(client.fds[0], 2**64 - 2)
    device.msix[0].trigger()
    assert device.msix[0].fired == 1
    assert os.eventfd_read(client.fds[0]) == 2**64 - 2


@pytest.mark.point("P65")
def test_a_client_that_closed_its_end_does_no_harm(device: Interrupting, client: Client) -> None:
    assign(device, MSIX, 0, [client.give()])
    os.close(client.fds[0])
    device.msix[0].trigger()


@pytest.mark.point("P65")
def test_a_descriptor_that_was_closed_under_us_does_no_harm(device: Interrupting, client: Client) -> None:
    given = client.give()
    assign(device, MSIX, 0, [given])
    os.close(given)
    device.msix[0].trigger()
    device.set_irqs(MSIX, TRIGGER, NONE, 0, 0)


@pytest.mark.point("P65", "P54")
def test_a_pipe_is_refused_and_closed(device: Interrupting, client: Client) -> None:
    reader, writer = os.pipe()
    with pytest.raises(RequestRefused, match="is not an eventfd"):
        assign(device, MSIX, 0, [client.give(), writer])
    assert select.select([reader], [], [], 0)[0] == [reader]  # end of file: our end is closed
    os.close(reader)
    with pytest.raises(RequestRefused, match="cannot be used"):
        assign(device, MSIX, 0, [9999])


REFUSED = {
    "no action": (MSIX, 0, NONE, 0, 1, 0, b""),
    "two actions": (MSIX, MASK | UNMASK, NONE, 0, 1, 0, b""),
    "no data type": (MSIX, TRIGGER, 0, 0, 1, 0, b""),
    "two data types": (MSIX, TRIGGER, NONE | BOOL, 0, 1, 0, b""),
    "start past the end": (MSIX, TRIGGER, NONE, 64, 1, 0, b""),
    "too many": (MSIX, TRIGGER, NONE, 60, 5, 0, b""),
    "overflow": (MSIX, TRIGGER, NONE, 1, 0xFFFF_FFFF, 0, b""),
    "index past the end": (5, TRIGGER, NONE, 0, 1, 0, b""),
    "count 0 but not start 0": (MSIX, TRIGGER, NONE, 1, 0, 0, b""),
    "count 0 with BOOL": (MSIX, TRIGGER, BOOL, 0, 0, 0, b""),
    "count 0 with EVENTFD": (MSIX, TRIGGER, EVENTFD, 0, 0, 0, b""),
    "count 0 with MASK": (MSIX, MASK, NONE, 0, 0, 0, b""),
    "ERR masked": (ERR, MASK, NONE, 0, 1, 0, b""),
    "REQ unmasked": (REQ, UNMASK, NONE, 0, 1, 0, b""),
    "two ERR vectors": (ERR, TRIGGER, EVENTFD, 0, 2, 2, b""),
    "descriptors with NONE": (MSIX, TRIGGER, NONE, 0, 1, 1, b""),
    "descriptors with BOOL": (MSIX, TRIGGER, BOOL, 0, 1, 1, b"\1"),
    "fewer descriptors than vectors": (MSIX, TRIGGER, EVENTFD, 0, 3, 2, b""),
    "more descriptors than vectors": (MSIX, TRIGGER, EVENTFD, 0, 1, 2, b""),
    "too few bytes": (MSIX, TRIGGER, BOOL, 0, 3, 0, b"\1\1"),
    "too many bytes": (MSIX, TRIGGER, BOOL, 0, 1, 0, b"\1\1"),
    "an unmask descriptor for MSI-X": (MSIX, UNMASK, EVENTFD, 0, 1, 1, b""),
}


@pytest.mark.point("P50", "P51", "P52", "P53", "P54", "P60", "PCI03")
@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_nonsense_is_refused_closes_its_descriptors_and_changes_nothing(
    device: Interrupting, client: Client, case: tuple[int, int, int, int, int, int, bytes]
) -> None:
    index, action, data, start, count, fds, bools = case
    assign(device, MSIX, 0, [client.give()])
    given = [client.give() for _ in range(fds)]
    with pytest.raises(RequestRefused) as refusal:
        device.set_irqs(index, IrqAction(action), IrqData(data), start, count, fds=given, bools=bools)
    assert refusal.value.errno == 22
    for fd in given:
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)
    device.msix[0].trigger()
    assert client.count(0) == 1


requests = st.tuples(
    st.sampled_from(ALL),
    st.sampled_from([MASK, UNMASK, TRIGGER]),
    st.sampled_from([NONE, BOOL, EVENTFD]),
    st.integers(0, 5),
    st.integers(0, 4),
    st.sampled_from(["none", "some", "a pipe"]),
)


@pytest.mark.point("P19", "P54", "P57")
@given(steps=st.lists(requests, max_size=20))
def test_every_descriptor_is_closed_exactly_once(steps: list[tuple[int, int, int, int, int, str]]) -> None:
    """Whatever is asked, taken or refused, no descriptor is left when the client is gone."""
    before = open_descriptors()
    device, loop = Interrupting(), Loop()
    device.attach(loop)
    for index, action, data, start, count, kind in steps:
        fds = [] if kind == "none" else [os.eventfd(0) for _ in range(count)]
        if kind == "a pipe" and fds:
            os.close(fds[-1])
            fds[-1], writer = os.pipe()
            os.close(writer)
        with suppress(RequestRefused):
            bools = bytes(count) if data == BOOL else b""
            device.set_irqs(index, IrqAction(action), IrqData(data), start, count, fds=fds, bools=bools)
        source(device, index)()
    device.disconnected()
    loop.close()
    assert open_descriptors() == before


@pytest.mark.point("P50")
def test_exactly_one_action_and_one_data_type_is_needed(device: Interrupting) -> None:
    """Of all 64 combinations of the flag bits only those with one of each kind are taken."""
    for flags in range(64):
        action, data = flags & 0x38, flags & 0x07
        good = action.bit_count() == data.bit_count() == 1
        try:
            bools = b"\0" if data == BOOL else b""
            device.set_irqs(INTX, IrqAction(action), IrqData(data), 0, 1, bools=bools)
        except RequestRefused:
            assert not good
        else:
            assert good
