"""Linux boots from the disk itself: by PC firmware, by UEFI, by UEFI that trusts only what is signed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from outboard import Server
from outboard.devices.nvme import Namespace, Nvme, Subsystem, ZoneLayout
from outboard.storage import RamStorage, open_storage
from outboard.testing.guest import Attach, Guest, linux_disk
from tests.guest.linux import complaints, disk_of

pytestmark = pytest.mark.guest

MANY = 256
ZONED = 2
"""The namespace identifier of the one with zones."""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return linux_disk(tmp_path_factory.mktemp("boot") / "linux.img")


@contextmanager
def booted(
    image: Path, firmware: str, *others: Namespace | RamStorage, block_size: int = 512
) -> Iterator[Guest]:
    """A machine that booted from ``image``, namespace 1 of a controller that has ``others``, too."""
    disks = Subsystem(Namespace(open_storage(str(image)), block_size), *others, serial="BOOT")
    socket = image.parent / f"{firmware}.sock"
    with (
        Server(Nvme(subsystem=disks), socket).start(),
        Guest(
            [Attach(socket, bootindex=0)],
            kernel="disk",
            firmware=firmware,  # type: ignore[arg-type]
            logs=image.parent / firmware,
        ) as guest,
    ):
        yield guest
    disks.namespaces[1].storage.close()


def beside() -> list[Namespace | RamStorage]:
    """A zoned namespace, which no firmware boots from, and many plain ones."""
    zoned = Namespace(RamStorage(64 << 20), zoned=ZoneLayout(size=16 << 20))
    return [zoned, *(RamStorage(1 << 20) for _ in range(MANY - 2))]


def has_zones(guest: Guest) -> bool:
    """Whether the zoned namespace is one for the guest, too."""
    return (
        guest.run(f"cat /sys/block/{disk_of(guest, ZONED).rpartition('/')[2]}/queue/zoned").strip()
        == "host-managed"
    )


@pytest.mark.point("B01", "B06")
def test_seabios_boots_linux_by_grub_beside_255_more_namespaces_one_of_them_zoned(image: Path) -> None:
    with booted(image, "seabios", *beside()) as guest:
        assert "outboard: GRUB on pc" in guest.console
        assert "efi" not in guest.run("ls /sys/firmware").split()
        assert guest.run("ls -d /sys/block/nvme*n* | wc -l").strip() == str(MANY)
        assert disk_of(guest, MANY)
        assert has_zones(guest)
        assert complaints(guest) == []


@pytest.mark.point("B06", "P147")
def test_ovmf_boots_linux_by_grub_beside_255_more_namespaces_one_of_them_zoned(image: Path) -> None:
    with booted(image, "ovmf", *beside()) as guest:
        assert "outboard: GRUB on efi" in guest.console
        assert guest.run("ls -d /sys/block/nvme*n* | wc -l").strip() == str(MANY)
        assert has_zones(guest)
        assert complaints(guest) == []


@pytest.mark.point("B02", "B06")
def test_ovmf_boots_with_secure_boot_from_blocks_of_4096_bytes(tmp_path: Path) -> None:
    image = linux_disk(tmp_path / "linux.img", block_size=4096)
    with booted(image, "secure", RamStorage(1 << 20), block_size=4096) as guest:
        assert "outboard: GRUB on efi" in guest.console
        assert "secureboot: Secure boot enabled" in guest.run("dmesg")
        assert guest.run(f"blockdev --getss {disk_of(guest, 1)}").strip() == "4096"
        assert guest.run(f"blockdev --getss {disk_of(guest, 2)}").strip() == "512"
        assert complaints(guest) == []
