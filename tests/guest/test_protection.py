"""An unmodified Linux checks what it reads by protection information, and so does the controller (N13).

The namespaces keep the metadata apart: that is what Linux asks for. It makes and checks protection
information itself, if it is not told to leave that to the controller.
"""

import errno
import json
from collections.abc import Iterator

import pytest

from outboard import Server
from outboard.devices.nvme import Namespace, Nvme, Protection
from outboard.storage import RamStorage
from outboard.testing.guest import Guest
from tests.guest.linux import MIB, disk_of, fio, write_random

pytestmark = pytest.mark.guest

FORMATS = {
    1: (512, 8, 16, "T10-DIF-TYPE1-CRC"),
    2: (4096, 8, 16, "T10-DIF-TYPE1-CRC"),
    3: (4096, 16, 64, "EXT-DIF-TYPE1-CRC64"),
}
"""By namespace: bytes of a block and of its metadata, bits of a guard, and how Linux calls that."""

GUARD_ERROR = 0x282
PAGE = 4096


@pytest.fixture(scope="module")
def spaces() -> dict[int, Namespace]:
    return {
        nsid: Namespace(RamStorage(48 << 20), size, metadata, protection=Protection(guard=guard))
        for nsid, (size, metadata, guard, _) in FORMATS.items()
    }


@pytest.fixture(scope="module")
def machine(spaces: dict[int, Namespace], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    folder = tmp_path_factory.mktemp("protection")
    socket = folder / "nvme.sock"
    tools = ["e2fsprogs", "fio", "nvme-cli"]
    with Server(Nvme(*spaces.values()), socket).start(), Guest([socket], tools=tools, logs=folder) as guest:
        yield guest


def damage(space: Namespace, block: int, *, metadata: bool) -> None:
    """Change a bit of a block, or of its guard, behind everybody's back."""
    at = space.metadata_offset + block * space.metadata if metadata else block * space.block_size
    (byte,) = space.storage.read(at, 1)
    space.storage.write(at, bytes([byte ^ 1]))


@pytest.mark.point("N13")
def test_linux_sees_the_protection_and_takes_part(machine: Guest, spaces: dict[int, Namespace]) -> None:
    for nsid, (size, _, _, name) in FORMATS.items():
        disk = disk_of(machine, nsid)
        folder = f"/sys/block/{disk.removeprefix('/dev/')}/integrity"
        found = machine.run(f"cat {folder}/format {folder}/write_generate {folder}/read_verify").split()
        assert found == [name, "1", "1"], "Linux makes it, and checks it"
        assert int(machine.run(f"blockdev --getsize64 {disk}")) == spaces[nsid].blocks * size


@pytest.mark.point("N13", "D08")
def test_fio_verifies_and_files_come_back(machine: Guest, spaces: dict[int, Namespace]) -> None:
    disks = [disk_of(machine, nsid) for nsid in FORMATS]
    machine.run(fio(*disks), timeout=180)
    for disk in disks:
        machine.run(f"mkfs.ext4 -q -F {disk} && mount {disk} /mnt && cp /bin/busybox /mnt/copy && sync")
        machine.run("umount /mnt")
        machine.run(f"mount {disk} /mnt && cmp /bin/busybox /mnt/copy; status=$?; umount /mnt; exit $status")
    protected = [space.storage.read(space.metadata_offset, 1 << 16) for space in spaces.values()]
    assert all(any(metadata) for metadata in protected), "protection information was stored"


@pytest.mark.point("N13")
@pytest.mark.parametrize("linux", [True, False], ids=["Linux takes part", "controller alone"])
@pytest.mark.parametrize("nsid", FORMATS)
def test_damage_in_the_storage_is_found(
    machine: Guest, spaces: dict[int, Namespace], nsid: int, linux: bool
) -> None:
    space, disk = spaces[nsid], disk_of(machine, nsid)
    integrity = f"/sys/block/{disk.removeprefix('/dev/')}/integrity"
    machine.run(f"echo {linux:d} >{integrity}/read_verify; echo {linux:d} >{integrity}/write_generate")
    write_random(machine, disk, mib=1, at=1)
    damaged = [(MIB + page * PAGE) // space.block_size + PAGE // space.block_size - 1 for page in (1, 2)]
    damage(space, damaged[0], metadata=True)
    damage(space, damaged[1], metadata=False)
    machine.run("dmesg -c")
    # Not with dd: Linux 6.12 finds damage in each block that begins in one page and ends in the next.
    read = (
        f"fio --name=all --filename={disk} --offset={MIB} --size={3 * PAGE} --bs={PAGE} --rw=read --direct=1"
    )
    said = machine.run(f"{read} --continue_on_error=all --output-format=json; true")
    (job,) = json.loads(said[said.index("{") :])["jobs"]
    assert (job["total_err"], job["error"]) == (2, errno.EILSEQ), "the first page is as it was"
    assert f"protection error, dev {disk.removeprefix('/dev/')}" in machine.run("dmesg")
    entries = json.loads(machine.run("nvme error-log /dev/nvme0 -e 2 -o json"))["errors"]
    found = [(entry["status_field"] & 0x7FF, entry["lba"], entry["nsid"]) for entry in entries]
    assert found == [(GUARD_ERROR, block, nsid) for block in reversed(damaged)]
