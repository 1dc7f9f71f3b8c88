"""Journals and a database on disks whose power is cut: what was flushed is there afterwards, all of it (T04).

Three disks with volatile write caches are at work at once. Ext4 and xfs get files, each synced, renamed, and
the folder synced; SQLite a row a transaction with ``synchronous=FULL``, by turns with a write-ahead log and
a rollback journal that is truncated. (To delete a journal is no flush: a power cut may bring it back, and
take a transaction with it, as SQLite says itself.) Only then is a number noted as acknowledged, in the
guest's memory.

The power is cut at a random one of the commands, which is torn if it is a write, and a random part of what
was not flushed reaches the media. The guest loses the controller, lets go of the file systems, and finds it
again after power on: it mounts (the journals are replayed), looks for all that was acknowledged, checks the
file systems, and goes on.
"""

import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from outboard import Server
from outboard.devices.nvme import Fault, Nvme
from outboard.errors import GuestError
from outboard.storage import open_storage
from outboard.testing.faults import fail
from outboard.testing.guest import Guest

pytestmark = pytest.mark.guest

PCI = "0000:01:00.0"
DRIVER = "/sys/bus/pci/drivers/nvme"

SCRIPT = r"""
disk() { # NSID: the disk, when it is there
    until at=$(grep -lx $1 /sys/block/nvme*/nsid 2>/dev/null); do :; done
    at=${at#/sys/block/}; until [ -b /dev/${at%/nsid} ]; do :; done; echo /dev/${at%/nsid}
}
attach() { mkdir -p /m/ext4 /m/xfs /m/sqlite
    mount -t ext4 $(disk 1) /m/ext4 && mount -t xfs $(disk 2) /m/xfs && mount -t ext4 $(disk 3) /m/sqlite; }
detach() { umount /m/ext4; umount /m/xfs; umount /m/sqlite; }

files() { # NAME: numbered files, each durable before it is acknowledged
    cd /m/$1 || exit
    n=$(cat /tmp/last.$1)
    while n=$((n + 1)); yes $n | head -n $((n % 7 * 500 + 20)) >new; do
        sync new && mv new $n && sync . || exit
        echo $n >/tmp/last.$1
    done
}
rows() { # the same with rows; the last one may have been stored and not acknowledged
    n=$(cat /tmp/last.sqlite)
    while n=$((n + 1)); do
        echo "INSERT OR REPLACE INTO t VALUES ($n, $n * 7, randomblob($n % 9 * 300)); SELECT $n;" || exit
    done | sqlite3 -bail -init /tmp/pragmas /m/sqlite/db >/tmp/rows
}
begin() { # MODE: of SQLite's journal
    printf 'PRAGMA synchronous=FULL;\nPRAGMA journal_mode=%s;\n' $1 >/tmp/pragmas
    (files ext4) >/dev/null 2>&1 </dev/null & echo $! >/tmp/pids
    (files xfs) >/dev/null 2>&1 </dev/null & echo $! >>/tmp/pids
    (rows) >/dev/null 2>&1 </dev/null & echo $! >>/tmp/pids
}
ended() { for pid in $(cat /tmp/pids); do while kill -0 $pid 2>/dev/null; do sleep 0.05; done; done
    last=$(grep -x '[0-9]*' /tmp/rows | tail -n 1); [ -z "$last" ] || echo $last >/tmp/last.sqlite; }

found() { # NAME: what is missing or wrong of what was acknowledged
    for n in $(seq $(($(cat /tmp/first.$1) + 1)) $(cat /tmp/last.$1)); do
        [ "$(sort -u /m/$1/$n 2>&1)" = $n ] && [ $(wc -l </m/$1/$n) = $((n % 7 * 500 + 20)) ] ||
            echo "$1: file $n is lost"
    done
    rm -f /m/$1/[0-9]* /m/$1/new; cp /tmp/last.$1 /tmp/first.$1
}
database() {
    last=$(cat /tmp/last.sqlite)
    ok=$(sqlite3 /m/sqlite/db "PRAGMA integrity_check" 2>&1)
    [ "$ok" = ok ] || echo "sqlite: $ok"
    rows=$(sqlite3 /m/sqlite/db "SELECT count(*) FROM t WHERE n <= $last AND v = n * 7" 2>&1)
    [ "$rows" = $last ] || echo "sqlite: $rows of $last rows are left"
}
check() { e2fsck -fn $(disk 1) && xfs_repair -n $(disk 2) && e2fsck -fn $(disk 3); }
"""

NEW = """
mkfs.ext4 -q -F $(disk 1) && mkfs.xfs -q -f $(disk 2) && mkfs.ext4 -q -F $(disk 3) && attach || exit
sqlite3 /m/sqlite/db "CREATE TABLE t (n INTEGER PRIMARY KEY, v, b)"
for name in ext4 xfs sqlite; do echo 0 >/tmp/last.$name; echo 0 >/tmp/first.$name; done; sync
"""


@dataclass(frozen=True)
class Rig:
    """A machine, and the controller that loses its power."""

    guest: Guest
    controller: Nvme

    def run(self, commands: str, timeout: float = 120) -> str:
        return self.guest.run(f". /power-cut.sh; {commands}", timeout)

    def acknowledged(self) -> dict[str, int]:
        """The last number that each workload was told is durable."""
        said = self.run("cd /tmp; grep . last.ext4 last.xfs last.sqlite")
        return {name: int(number) for name, number in re.findall(r"last\.(\w+):(\d+)", said)}

    def cut(self, chance: random.Random) -> list[str]:
        """Cut the power amid the work, and switch it on again; what was lost of what was flushed."""
        command = chance.randrange(60, 600)
        self.run(f"begin {chance.choice(('WAL', 'TRUNCATE'))}")
        with fail(
            self.controller,
            queue="io",
            nth=command,
            torn=chance.randrange(9),
            power_cut=True,
            seed=chance.getrandbits(32),
        ) as fault:
            deadline = time.monotonic() + 120
            # Struck, a write has its beginning stored before the power goes.
            while self.controller.ready:
                assert time.monotonic() < deadline, f"only {fault.matched} of {command} commands came"
                time.sleep(0.005)
        assert fault.struck == 1
        self.controller.surprise_removal()
        self.run(f"echo {PCI} >{DRIVER}/unbind; ended; detach")
        self.controller.replug()
        self.run(f"echo {PCI} >{DRIVER}/bind")
        try:
            lost = self.run("attach && found ext4 && found xfs && database && detach").splitlines()
            self.run("check && attach")
        except GuestError as error:
            lost = [f"a file system is damaged: {error}"]
        return [line for line in lost if line]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("cuts")
    controller = Nvme(*(open_storage(f"volatile:ram:{size}") for size in ("64M", "320M", "64M")))
    with (
        Server(controller, folder / "nvme.sock").start(),
        Guest(
            [folder / "nvme.sock"],
            tools=["e2fsprogs", "xfsprogs", "sqlite3"],
            modules=["xfs"],
            files={"/power-cut.sh": SCRIPT.encode()},
            spare_ports=0,
            logs=folder,
        ) as guest,
    ):
        yield Rig(guest, controller)


@pytest.mark.point("T04", "S04", "N04")
@pytest.mark.parametrize("cuts", [3, pytest.param(100, marks=pytest.mark.soak)])
def test_what_was_flushed_survives_power_cuts_at_random_moments(rig: Rig, cuts: int) -> None:
    chance = random.Random(cuts)
    rig.run(NEW)
    for number in range(cuts):
        lost = rig.cut(chance)
        assert lost == [], f"cut {number} lost: " + "; ".join(lost)
    last = rig.acknowledged().values()
    assert len(last) == 3
    assert min(last) > max(cuts, max(last) / 5), f"somebody was not at work: {rig.acknowledged()}"
    rig.run("detach")


@pytest.mark.point("T04")
def test_the_loss_is_seen_where_flushes_lie(rig: Rig) -> None:
    chance = random.Random(7)
    rig.run(NEW)
    rig.controller.faults.inject(Fault(lie=True))
    # A cut may come before anything was acknowledged, or hit what nobody asked for.
    lost = any(rig.cut(chance) for _ in range(3))
    rig.controller.faults.clear()
    rig.guest.run("umount -l /m/* 2>/dev/null; :")
    assert lost, "nothing was lost that was never flushed"
