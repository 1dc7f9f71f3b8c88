import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from outboard.protocol.messages import IrqIndex, SetIrqsFlag
from outboard.testing.client import TestClient

EXAMPLE = Path(__file__).parents[2] / "examples" / "04_gpio.py"
OUTPUTS, INPUTS, SWITCH, FILTERS, STATUS = (0, 4), (1, 5), 2, 3, 6
PENDING = 0b100


@pytest.fixture
def card() -> Any:
    return runpy.run_path(str(EXAMPLE))["Idio16"]()


@pytest.fixture
def client(card: Any) -> Iterator[TestClient]:
    with TestClient(card) as client:
        yield client


def unmask(client: TestClient) -> None:
    """What a client does after each interrupt on the line."""
    client.set_irqs(IrqIndex.INTX, SetIrqsFlag.DATA_NONE | SetIrqsFlag.UNMASK, start=0, count=1)


def test_the_example_is_forty_lines_of_code() -> None:
    assert sum(bool(line.strip()) for line in EXAMPLE.read_text().splitlines()) <= 40


def test_outputs_read_back_and_come_in_again_by_the_plug(client: TestClient) -> None:
    ports = client.bar(2)
    ports.write8(OUTPUTS[0], 0b1010)
    ports.write8(OUTPUTS[1], 0x80)
    assert [ports.read8(offset) for offset in OUTPUTS + INPUTS] == [0b1010, 0x80, 0b1010, 0x80]


def test_inputs_follow_the_world_and_not_the_driver(client: TestClient, card: Any) -> None:
    ports = client.bar(2)
    card.drive(1, 0x42)
    for offset in INPUTS:
        ports.write8(offset, 0xFF)
    assert [ports.read8(offset) for offset in OUTPUTS + INPUTS] == [0, 0, 0, 0x42]


def test_a_change_interrupts_only_while_it_is_switched_on(client: TestClient, card: Any) -> None:
    ports, line = client.bar(2), client.enable_intx()
    card.drive(0, 1)
    assert ports.read8(STATUS) & PENDING == 0
    ports.read8(SWITCH)
    card.drive(0, 1)
    assert ports.read8(STATUS) & PENDING == 0
    card.drive(0, 0)
    assert line.wait(1) == 1
    ports.write8(SWITCH, 0)
    ports.write8(INPUTS[0], 0)
    unmask(client)
    card.drive(0, 1)
    assert ports.read8(STATUS) & PENDING == 0
    assert line.take() == 0


def test_the_line_stays_up_until_the_interrupt_is_cleared(client: TestClient, card: Any) -> None:
    ports, line = client.bar(2), client.enable_intx()
    ports.read8(SWITCH)
    card.drive(1, 1)
    assert line.wait(1) == 1
    ports.write8(INPUTS[1], 0)
    unmask(client)
    assert line.wait(1) == 1
    assert ports.read8(STATUS) & PENDING
    ports.write8(INPUTS[0], 0)
    unmask(client)
    assert line.take() == 0
    assert ports.read8(STATUS) & PENDING == 0


def test_the_filters_switch_changes_nothing_that_is_seen(client: TestClient) -> None:
    ports = client.bar(2)
    ports.write8(FILTERS, 0)
    assert ports.read8(FILTERS) == 0


def test_a_reset_opens_all_outputs_and_switches_interrupts_off(client: TestClient, card: Any) -> None:
    ports, line = client.bar(2), client.enable_intx()
    ports.read8(SWITCH)
    ports.write8(OUTPUTS[0], 1)
    assert line.wait(1) == 1
    client.reset()
    assert [ports.read8(offset) for offset in (*OUTPUTS, *INPUTS, STATUS)] == [0, 0, 0, 0, 0]
    card.drive(0, 1)
    unmask(client)
    assert line.take() == 0
