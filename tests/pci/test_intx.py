# ruff: noqa: PT009 (`assert_` raises an interrupt line)
"""The interrupt line: level, mask, automask, the client's unmask descriptor."""

import os

import pytest

from outboard.loop import Loop
from tests.pci.interrupting import (
    BOOL,
    COMMAND,
    CONFIG,
    EVENTFD,
    INTX,
    MASK,
    NONE,
    STATUS,
    TRIGGER,
    UNMASK,
    Client,
    Interrupting,
    assign,
)


@pytest.mark.point("P61", "P63", "PCI03")
def test_intx_signals_once_and_again_at_each_unmask_while_the_line_is_up(
    device: Interrupting, client: Client
) -> None:
    assign(device, INTX, 0, [client.give()])
    device.intx.assert_()
    device.intx.assert_()
    assert client.count() == 1
    device.intx.deassert()
    device.intx.assert_()
    assert client.count() == 0  # masked since it was signalled
    device.set_irqs(INTX, UNMASK, NONE, 0, 1)
    assert client.count() == 1
    device.set_irqs(INTX, UNMASK, BOOL, 0, 1, bools=b"\1")
    assert client.count() == 1
    device.intx.deassert()
    device.set_irqs(INTX, UNMASK, NONE, 0, 1)
    assert client.count() == 0
    device.intx.assert_()
    assert client.count() == 1
    assert device.intx.fired == 3


@pytest.mark.point("P61")
def test_intx_may_be_masked_and_unmasked_with_nothing_assigned(device: Interrupting, client: Client) -> None:
    device.set_irqs(INTX, UNMASK, NONE, 0, 1)
    device.set_irqs(INTX, MASK, NONE, 0, 1)
    device.intx.assert_()
    device.set_irqs(INTX, UNMASK, NONE, 0, 1)
    assign(device, INTX, 0, [client.give()])
    assert client.count() == 1  # the line was up already


@pytest.mark.point("P61")
def test_a_masked_intx_writes_no_eventfd(device: Interrupting, client: Client) -> None:
    assign(device, INTX, 0, [client.give()])
    device.set_irqs(INTX, MASK, NONE, 0, 1)
    device.intx.assert_()
    assert client.count() == 0


@pytest.mark.point("P62", "PCI03")
def test_the_client_unmasks_intx_by_a_descriptor(device: Interrupting, client: Client) -> None:
    loop = Loop()
    device.attach(loop)
    assign(device, INTX, 0, [client.give()])
    device.set_irqs(INTX, UNMASK, EVENTFD, 0, 1, fds=[client.give()])
    device.intx.assert_()
    assert client.count(0) == 1
    for _ in range(2):
        os.eventfd_write(client.fds[1], 1)
        loop.run_once(timeout=1)
        assert client.counts() == [1, 0]
    device.intx.deassert()
    os.eventfd_write(client.fds[1], 1)
    loop.run_once(timeout=1)
    assert client.counts() == [0, 0]
    device.set_irqs(INTX, TRIGGER, NONE, 0, 0)
    os.eventfd_write(client.fds[1], 1)
    assert not loop.run_once(timeout=0)
    loop.close()


@pytest.mark.point("P62")
def test_an_unmask_descriptor_given_before_there_is_a_loop_works_later(
    device: Interrupting, client: Client
) -> None:
    assign(device, INTX, 0, [client.give()])
    device.set_irqs(INTX, UNMASK, EVENTFD, 0, 1, fds=[client.give(flags=0)])
    device.intx.assert_()
    loop = Loop()
    device.attach(loop)
    os.eventfd_write(client.fds[1], 5)
    loop.run_once(timeout=1)
    assert client.count(0) == 2
    device.disconnected()
    loop.close()


@pytest.mark.point("P62")
def test_a_second_unmask_descriptor_replaces_the_first_and_none_removes_it(
    device: Interrupting, client: Client
) -> None:
    given = [client.give(), client.give()]
    for fd in given:
        device.set_irqs(INTX, UNMASK, EVENTFD, 0, 1, fds=[fd])
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(given[0])
    device.set_irqs(INTX, UNMASK, EVENTFD, 0, 1)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(given[1])


def test_intx_shows_in_status_and_obeys_intx_disable(device: Interrupting, client: Client) -> None:
    assign(device, INTX, 0, [client.give()])
    device.region_write(CONFIG, COMMAND, b"\0\4")
    device.intx.assert_()
    assert device.region_read(CONFIG, STATUS, 1)[0] & 8
    assert client.count() == 0
    device.region_write(CONFIG, COMMAND, b"\0\0")
    assert client.count() == 1
    device.intx.deassert()
    assert not device.region_read(CONFIG, STATUS, 1)[0] & 8
