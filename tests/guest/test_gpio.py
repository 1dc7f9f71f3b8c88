"""An example of ours that a driver of Linux's own takes for the card it was written for: gpio-pci-idio-16.

Linux 6.12's hands each interrupt of the card on to all 16 inputs, also to those that nobody has watched yet,
and at the first of these the kernel ends itself. So all are watched before one alone is.
"""

import runpy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from outboard import Server
from outboard.testing.guest import EVERY_MACHINE, Guest, find_kernel
from tests.guest.linux import complaints, interrupts

pytestmark = pytest.mark.guest

EXAMPLE = Path(__file__).parents[2] / "examples" / "04_gpio.py"
CARD = "0000:01:00.0"
INPUTS = [f"IIN{number}" for number in range(16)]


@pytest.fixture(scope="module")
def card() -> Any:
    return runpy.run_path(str(EXAMPLE))["Idio16"]()


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, card: Any) -> Iterator[Guest]:
    folder = tmp_path_factory.mktemp("gpio")
    with (
        Server(card, folder / "gpio.sock").start(),
        Guest(
            [folder / "gpio.sock"],
            kernel=find_kernel(package=EVERY_MACHINE),
            modules=["gpio-pci-idio-16"],
            tools=["gpiod"],
            logs=folder,
        ) as guest,
    ):
        yield guest


def levels(guest: Guest, *lines: str) -> list[bool]:
    """Whether each line is high, as the driver reads it."""
    return ["=active" in line for line in guest.run(f"gpioget --as-is {' '.join(lines)}").split()]


def drive(card: Any, port: int, lines: int) -> None:
    """Set eight inputs from outside."""
    done = Event()
    card.call_soon(lambda: card.drive(port, lines))
    card.call_soon(done.set)
    assert done.wait(10)


@contextmanager
def watching(guest: Guest, *lines: str, events: int) -> Iterator[list[str]]:
    """A program in the guest waits for so many edges, which the block brings; then they are listed."""
    seen: list[str] = []
    watcher = f"gpiomon --num-events {events} --format '%E %l' {' '.join(lines)}"
    guest.run(f"(timeout 30 {watcher}; echo ended) >/tmp/events 2>&1 &")
    guest.run(f"until [ $(grep -c gpiomon /proc/interrupts) = {len(lines)} ]; do :; done")
    yield seen
    guest.run("until grep -q ended /tmp/events; do :; done")
    seen += guest.run("grep -v ended /tmp/events").splitlines()


@pytest.mark.point("P141")
def test_linux_binds_its_driver_to_the_card(machine: Guest) -> None:
    assert CARD in machine.run("ls /sys/bus/pci/drivers/pci-idio-16")
    assert machine.run("gpiodetect").strip() == f"gpiochip0 [{CARD}] (32 lines)"


@pytest.mark.point("P142")
def test_outputs_the_guest_sets_are_set_and_read_back(machine: Guest, card: Any) -> None:
    machine.run("gpioset --toggle 0 OUT3=1 OUT15=1")
    assert list(card.outputs) == [0x08, 0x80]
    assert levels(machine, "OUT2", "OUT3", "OUT15") == [False, True, True]
    machine.run("gpioset --toggle 0 OUT3=0")
    assert list(card.outputs) == [0x00, 0x80]
    machine.run("gpioset --toggle 0 OUT15=0")


@pytest.mark.point("P142")
def test_inputs_that_the_world_sets_are_seen(machine: Guest, card: Any) -> None:
    drive(card, 0, 0x01)
    drive(card, 1, 0x80)
    assert levels(machine, "IIN0", "IIN1", "IIN14", "IIN15") == [True, False, False, True]
    drive(card, 0, 0)
    drive(card, 1, 0)
    assert levels(machine, "IIN0", "IIN15") == [False, False]


@pytest.mark.point("P142", "PCI03")
def test_a_change_interrupts_and_who_waits_for_it_hears_the_edge(machine: Guest, card: Any) -> None:
    before = interrupts(machine, CARD)[CARD]
    with watching(machine, *INPUTS, events=16) as seen:
        drive(card, 0, 1 << 5)
    assert seen == [f"{'rising' if name == 'IIN5' else 'falling'} {name}" for name in INPUTS]
    with watching(machine, "IIN9", events=2) as seen:
        machine.run("gpioset --toggle 0 OUT9=1")
        machine.run("gpioset --toggle 0 OUT9=0")
    assert seen == ["rising IIN9", "falling IIN9"]
    assert card.intx.fired == 3
    # QEMU takes any access for the end of the interrupt, and hears of it anew if the line is still up then.
    assert interrupts(machine, CARD)[CARD] - before >= 3
    assert not card.enabled
    assert not card.intx.asserted
    assert complaints(machine, "idio") == []
