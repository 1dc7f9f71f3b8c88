import runpy
from pathlib import Path
from typing import Any

import pytest

from outboard.testing.client import TestClient

EXAMPLE = Path(__file__).parents[2] / "examples" / "01_edu.py"


@pytest.fixture
def edu() -> Any:
    return runpy.run_path(str(EXAMPLE))["Edu"]()


def test_the_example_is_a_page() -> None:
    assert len(EXAMPLE.read_text().splitlines()) < 60


def test_it_inverts_and_computes_factorials(edu: Any) -> None:
    with TestClient(edu) as client:
        mmio = client.bar(0)
        assert mmio.read32(0x00) == 0x0100_00ED
        mmio.write32(0x04, 0x0F0F_0F0F)
        assert mmio.read32(0x04) == 0xF0F0_F0F0
        for n, factorial in ((0, 1), (5, 120), (33, 0x8000_0000), (34, 0), (0xFFFF_FFFF, 0)):
            mmio.write32(0x08, n)
            assert mmio.read32(0x08) == factorial


def test_an_interrupt_stays_until_acknowledged(edu: Any) -> None:
    with TestClient(edu) as client:
        mmio = client.bar(0)
        interrupts = client.enable_msi(1)
        mmio.write32(0x60, 0b101)
        assert interrupts[0].wait(1) == 1
        mmio.write32(0x64, 0b001)
        assert mmio.read32(0x24) == 0b100


def test_it_moves_memory_both_ways(edu: Any) -> None:
    with TestClient(edu) as client:
        mmio, ram = client.bar(0), client.memory(4096)
        client.bus_master(True)
        interrupts = client.enable_msi(1)
        ram.view[:5] = b"hello"
        for source, target, command in (
            (ram.address, 0x40100, 0b101),
            (0x40100, ram.address + 0x800, 0b111),
        ):
            mmio.write64(0x80, source)
            mmio.write64(0x88, target)
            mmio.write64(0x90, 5)
            mmio.write64(0x98, command)
            assert interrupts[0].wait(1) == 1
            assert mmio.read32(0x24) == 0x100
            assert mmio.read64(0x98) & 1 == 0
            mmio.write32(0x64, 0x100)
        assert bytes(ram.view[0x800:0x806]) == b"hello\0"
