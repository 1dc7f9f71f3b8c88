"""Pools: namespaces that hosts create are there again after a restart, and leave nothing when they go."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from outboard.client import Client
from outboard.devices.nvme import FolderPool, open_pool
from outboard.devices.nvme.layouts import NAMESPACE_MANAGEMENT
from outboard.devices.nvme.spec import AdminOpcode
from outboard.drivers.nvme import NvmeDriver
from outboard.errors import ConfigurationError, StorageError
from outboard.operation import ControlClient
from tests.operation.conftest import Ask, Run, document


def described(folder: Path, pool: str) -> dict[str, Any]:
    found = document(folder, {"backend": "ram:1M"})
    found["subsystem"]["main"] |= {"pool": pool, "state": str(folder / "state.json")}
    return found


@contextmanager
def host(folder: Path) -> Iterator[tuple[Ask, Client, NvmeDriver]]:
    with (
        ControlClient(folder / "control.sock") as control,
        Client(folder / "a.sock") as client,
        NvmeDriver(client) as driver,
    ):
        yield control.call, client, driver


def create(client: Client, driver: NvmeDriver, blocks: int) -> int:
    """Have a host create a namespace; its identifier."""
    ram = client.memory(4096)
    ram.write(0, NAMESPACE_MANAGEMENT.encode(nsze=blocks, ncap=blocks, nmic=1))
    return driver.admin("Create", AdminOpcode.NAMESPACE_MANAGEMENT, prp1=ram.address)


def test_what_a_host_creates_is_there_after_a_restart_with_its_content(run: Run, tmp_path: Path) -> None:
    document = described(tmp_path, f"{tmp_path / 'pool'},size=8M")
    running = run(document)
    with host(tmp_path) as (ask, client, driver):
        assert create(client, driver, 2048) == 2
        ask("namespace.attach", nsid=2, cntlid=1)
        driver.write(2, 0, b"created".ljust(512))
        shown = ask("subsystem.show")
        assert (shown["pool"], shown["pool_free"]) == (8 << 20, 7 << 20)
        assert [(each["nsid"], each["created"]) for each in shown["namespaces"]] == [(1, False), (2, True)]
        assert ask("namespace.resize", nsid=2, size="2M")["size"] == 2 << 20
        assert ask("subsystem.show")["pool_free"] == 6 << 20
    running.close()
    run(document)
    with host(tmp_path) as (ask, _, driver):
        assert [each["nsid"] for each in ask("namespace.list")] == [1, 2]
        ask("namespace.attach", nsid=2, cntlid=1)
        assert driver.read(2, 0, 512)[:7] == b"created"


def test_what_the_operator_removes_of_it_is_deleted(run: Run, tmp_path: Path) -> None:
    run(described(tmp_path, f"{tmp_path / 'pool'},size=8M"))
    with host(tmp_path) as (ask, client, driver):
        nsid = create(client, driver, 2048)
        assert [each.name for each in (tmp_path / "pool").iterdir()] == [f"namespace{nsid}.img"]
        assert ask("namespace.remove", nsid=nsid) is None
        assert not list((tmp_path / "pool").iterdir())
        assert ask("subsystem.show")["pool_free"] == 8 << 20


def test_a_pool_in_memory_is_all_that_is_needed(run: Run, tmp_path: Path) -> None:
    run(described(tmp_path, "ram:4M"))
    with host(tmp_path) as (ask, client, driver):
        nsid = create(client, driver, 4096)
        ask("namespace.attach", nsid=nsid, cntlid=1)
        driver.write(nsid, 4096, bytes(4096))
        assert ask("subsystem.show")["pool_free"] == 2 << 20


@pytest.mark.parametrize("spec", ["8G", "ram:", "ram:much", ",size=8G", "/srv/pool,size=", "pool"])
def test_what_is_no_pool_is_told(spec: str) -> None:
    with pytest.raises(StorageError, match=r"is no pool|is not a size"):
        open_pool(spec)


def test_a_folders_name_may_hold_what_options_begin_with(tmp_path: Path) -> None:
    pool = open_pool(f"{tmp_path}/a,size=1/b,size=1M")
    assert isinstance(pool, FolderPool)
    assert (pool.folder, pool.capacity) == (tmp_path / "a,size=1" / "b", 1 << 20)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"pool": "pool"}, "subsystem.main: 'pool' is no pool: write ram:8G, or a folder and a size"),
        ({"placement": {"unit": 5000}}, "subsystem.main: a reclaim unit has 64K or more"),
        ({"placement": "handles=0"}, "subsystem.main.placement.handles is 0: it is 1 to 128"),
        ({"placement": "8"}, "subsystem.main.placement is '8': it is a table"),
        ({"model": ""}, "subsystem.main: model ''"),
    ],
)
def test_what_a_subsystem_cannot_be_is_told_with_its_place(
    run: Run, tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    described = document(tmp_path)
    described["subsystem"]["main"] |= change
    with pytest.raises((ConfigurationError, StorageError)) as told:
        run(described)
    assert str(told.value).startswith("test.toml: " + sentence)


@pytest.mark.parametrize("shared", [{"pool": "pool,size=1M"}, {"state": "state.json"}])
def test_what_two_subsystems_would_destroy_for_each_other_is_refused(
    run: Run, tmp_path: Path, shared: dict[str, Any]
) -> None:
    described = document(tmp_path)
    described["subsystem"]["main"] |= shared
    described["subsystem"]["spare"] = {"controller": [{"socket": str(tmp_path / "c.sock")}], **shared}
    with pytest.raises(ConfigurationError, match="is there 2 times: each one needs its own"):
        run(described)
