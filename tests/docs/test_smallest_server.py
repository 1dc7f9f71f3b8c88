"""The server in C that the documentation shows: it compiles, and clients take it for a device."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from outboard import Client
from outboard.client.qemu import QemuClient
from outboard.conformance import judge_server
from outboard.testing.guest import Guest
from tests.guest.linux import Registers, bar

SOURCE = Path(__file__).parents[2] / "docs/protocol/server.c"
MEMORY = 0x1000_0000
WARNINGS = ["-Wall", "-Wextra", "-Werror"]

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("smallest") / "smallest"
    subprocess.run(["cc", "-O2", "-fno-strict-aliasing", *WARNINGS, "-o", program, SOURCE], check=True)
    return program


@pytest.fixture
def socket(program: Path, tmp_path: Path) -> Iterator[Path]:
    with subprocess.Popen([program, tmp_path / "socket"]) as process:
        try:
            Client(tmp_path / "socket", patience=10).close()
            yield tmp_path / "socket"
        finally:
            process.kill()


def test_the_server_of_the_page_is_what_qemu_expects(socket: Path) -> None:
    with QemuClient(socket) as client:
        registers, line = client.bar(0), client.enable_intx()
        client.bus_master(True)
        client.ram.write(0x1000, bytes([1, 2, 3, 4]))
        for _ in range(2):
            registers.write64(0x08, 0x1000)
            line.wait(5)
            assert registers.read32(0x10) == 1
            assert registers.read32(0x10) == 0
            client.unmask_intx()
        assert client.ram.read(0x1000, 4) == bytes([1, 2, 3, 4])


def test_the_server_of_the_page_keeps_its_registers_for_the_next_client(socket: Path) -> None:
    with Client(socket) as client:
        client.bar(0).write32(0x00, 0x0F0F_0F0F)
    with Client(socket) as client:
        assert client.bar(0).read32(0x00) == 0xF0F0_F0F0


def test_the_suite_finds_in_it_what_the_page_says_it_does_without(socket: Path) -> None:
    assert [verdict.point.id for verdict in judge_server(socket).failures] == ["P32a", "P32b"]


@pytest.mark.guest
def test_linux_finds_the_device_of_the_page(socket: Path, tmp_path: Path) -> None:
    with Guest([socket], tools=["pciutils"], append=f"memmap=1M${MEMORY:#x}", logs=tmp_path) as guest:
        assert "1234:0002" in guest.run("lspci -n")
        guest.run("setpci -s 01:00.0 COMMAND=6:6")
        registers, memory = bar(guest, "0000:01:00.0"), Registers(guest, MEMORY)
        registers[0x00], memory[0x10] = 0x1234_5678, 0xCAFE_F00D
        assert registers[0x00] == 0xEDCB_A987
        registers[0x08] = MEMORY + 0x10
        assert registers[0x10] == 1
        assert memory[0x10] == 0xCAFE_F00D ^ 0xFFFF_FFFF
