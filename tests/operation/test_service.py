"""Subsystems that are changed while hosts use them, by the methods of the control socket."""

import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from outboard.client import Client
from outboard.drivers.nvme import CNS_NAMESPACE, NvmeDriver
from outboard.errors import ConfigurationError, ConnectionLost, RemoteError, SetupError, StorageError
from outboard.operation import ControlClient
from outboard.operation.control.methods import METHODS
from outboard.operation.declared import Misfit
from tests.operation.conftest import Ask, Run, controller, document


@pytest.fixture
def driver(ask: Ask, tmp_path: Path) -> Iterator[NvmeDriver]:
    """A host of the first controller."""
    with Client(tmp_path / "a.sock") as client, NvmeDriver(client) as driver:
        yield driver


def test_a_namespace_that_is_added_is_seen_and_serves(ask: Ask, driver: NvmeDriver) -> None:
    assert driver.namespaces() == [1, 2]
    added = ask("namespace.add", backend="ram:2M", block_size="4K")
    assert added == {
        "nsid": 3,
        "storage": "ram:2M",
        "size": 2 << 20,
        "block_size": 4096,
        "metadata": 0,
        "shared": True,
        "zones": 0,
        "ana_group": 1,
        "protection": "none",
        "created": False,
        "attached": [1, 2],
    }
    assert driver.namespaces() == [1, 2, 3]
    driver.write(3, 4096, b"x" * 4096)
    assert driver.read(3, 4096, 4096) == b"x" * 4096


def test_a_namespace_of_zones_is_described_by_their_size(ask: Ask, driver: NvmeDriver) -> None:
    zones = {"zoned": True, "zone_size": "256K", "zone_capacity": "128K", "max_open": 2, "max_active": 3}
    added = ask("namespace.add", backend="ram:1M", block_size=4096, **zones)
    assert (added["zones"], added["size"], added["storage"]) == (4, 1 << 20, "ram:1M")
    with pytest.raises(RemoteError, match="max_open: that is said of zones"):
        ask("namespace.add", backend="ram:1M", max_open=2)


def test_both_paths_lead_to_the_same_blocks(ask: Ask, driver: NvmeDriver, tmp_path: Path) -> None:
    driver.write(1, 0, b"shared" + bytes(506))
    with Client(tmp_path / "b.sock") as client, NvmeDriver(client) as other:
        assert other.read(1, 0, 512)[:6] == b"shared"


def test_a_namespace_that_is_removed_is_gone_and_its_file_is_free(
    ask: Ask, driver: NvmeDriver, tmp_path: Path
) -> None:
    backend = f"{tmp_path / 'disk.img'},size=1M"
    nsid = ask("namespace.add", backend=backend)["nsid"]
    driver.write(nsid, 0, b"x" * 512)
    with pytest.raises(RemoteError, match="is in use by another disk"):
        ask("namespace.add", backend=backend)
    assert ask("namespace.remove", nsid=nsid) is None
    assert driver.namespaces() == [1, 2]
    with pytest.raises(RemoteError):
        driver.read(nsid, 0, 512)
    assert ask("namespace.add", backend=backend)["nsid"] == nsid
    assert driver.read(nsid, 0, 512) == b"x" * 512


def test_a_namespace_is_detached_from_one_controller_and_attached_again(ask: Ask, driver: NvmeDriver) -> None:
    assert ask("namespace.detach", nsid=1, cntlid=1)["attached"] == [2]
    assert driver.namespaces() == [2]
    assert not any(driver.identify(CNS_NAMESPACE, 1))
    assert ask("namespace.attach", nsid=1, cntlid=1)["attached"] == [1, 2]
    assert driver.namespaces() == [1, 2]


def test_a_namespace_that_is_not_shared_has_one_controller(ask: Ask) -> None:
    nsid = ask("namespace.add", backend="ram:1M", shared=False)["nsid"]
    (owner,) = ask("namespace.list")[nsid - 1]["attached"]
    with pytest.raises(RemoteError, match=f"namespace {nsid} is not shared: controller {owner} has it"):
        ask("namespace.attach", nsid=nsid, cntlid=3 - owner)


@pytest.mark.parametrize(
    ("method", "params", "sentence"),
    [
        ("namespace.remove", {"nsid": 7}, "there is no namespace 7 in main: there is 1, 2"),
        ("namespace.attach", {"nsid": 1, "cntlid": 9}, "there is no controller 9 in main: there is 1, 2"),
        ("namespace.attach", {"nsid": 1}, "cntlid is missing: The controller."),
        ("namespace.remove", {"nsid": 0}, "nsid is 0: it is 1 to 4294967294"),
        (
            "namespace.remove",
            {"nsid": 1, "subsystem": "other"},
            "there is no subsystem 'other': there are",
        ),
        ("namespace.add", {"backend": "ram:1M", "nsid": 1}, "namespace 1 is there already"),
        ("namespace.add", {"backend": "ram:1M", "nsid": 33}, "namespace identifiers are 1 to 32: 33 is not"),
        ("namespace.add", {"backend": "ram:1M", "block_size": 1000}, "1000"),
        ("namespace.add", {"backend": "ram:1M", "blocksize": 512}, "did you mean block_size?"),
        ("controller.remove", {"cntlid": 3}, "there is no controller 3 in main"),
        ("controller.add", {"socket": "/nowhere/c.sock"}, "cannot listen on /nowhere/c.sock"),
        ("controller.add", {"socket": "c.sock", "vectors": 3000}, "vectors is 3000: it is 0 to 2048"),
        ("log.level", {"level": "loud"}, "level is 'loud': it is one of debug, info"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(
    ask: Ask, method: str, params: dict[str, Any], sentence: str
) -> None:
    before = ask("subsystem.show")
    with pytest.raises(RemoteError) as refused:
        ask(method, **params)
    assert sentence in refused.value.sentence
    assert ask("subsystem.show") == before


def test_faults_are_injected_told_and_lifted(ask: Ask, driver: NvmeDriver) -> None:
    fault = {"opcode": "read", "lba": [8, 15], "status": [2, 0x81], "dnr": True}
    injected = ask("fault.inject", fault=fault)
    with pytest.raises(RemoteError, match="Read"):
        driver.read(1, 8 * 512, 512)
    driver.read(1, 0, 512)
    (told,) = ask("fault.list")
    assert (told["id"], told["matched"], told["struck"]) == (injected["id"], 1, 1)
    assert told["fault"]["lba"] == [8, 15]
    ask("fault.remove", id=injected["id"])
    assert ask("fault.list") == []
    driver.read(1, 8 * 512, 512)
    with pytest.raises(RemoteError, match="a fault has no 'lbas'"):
        ask("fault.inject", fault={"opcode": "read", "lbas": 8})
    ask("fault.inject", fault=fault)
    assert ask("fault.clear") is None
    assert ask("fault.list") == []


def test_a_path_can_be_closed_and_opened_for_a_group(ask: Ask, driver: NvmeDriver) -> None:
    ask("namespace.add", backend="ram:1M", ana_group=2)
    ask("ana.set", cntlid=1, group=2, access="inaccessible")
    with pytest.raises(RemoteError, match="Read"):
        driver.read(3, 0, 512)
    driver.read(1, 0, 512)
    ask("ana.set", cntlid=1, group=2, access="optimized")
    driver.read(3, 0, 512)
    with pytest.raises(RemoteError, match="access is 'open': it is one of optimized"):
        ask("ana.set", cntlid=1, group=2, access="open")


def test_controllers_come_and_go_while_the_others_serve(ask: Ask, driver: NvmeDriver, tmp_path: Path) -> None:
    added = ask("controller.add", socket=str(tmp_path / "c.sock"), pollers=0)
    assert (added["cntlid"], added["state"], added["namespaces"]) == (3, "off", [1, 2])
    with Client(tmp_path / "c.sock") as client:
        third = NvmeDriver(client)
        third.write(1, 0, b"third" + bytes(507))
        assert driver.read(1, 0, 512)[:5] == b"third"
        assert [each["connected"] for each in ask("controller.list")] == [True, False, True]
        ask("controller.remove", cntlid=3)
        with pytest.raises(ConnectionLost):
            client.config.read32(0)
    assert not (tmp_path / "c.sock").exists()
    assert [each["cntlid"] for each in ask("controller.list")] == [1, 2]
    assert driver.read(1, 0, 512)[:5] == b"third"


def test_what_is_shown_is_what_was_described(ask: Ask, driver: NvmeDriver, tmp_path: Path) -> None:
    shown = ask("subsystem.show")
    assert (shown["name"], shown["serial"], shown["model"]) == ("main", "LAB-7", "outboard NVMe")
    assert [space["storage"] for space in shown["namespaces"]] == ["ram:1M", "null:1G"]
    first, second = shown["controllers"]
    assert (first["place"], first["state"], first["io_queues"]) == (str(tmp_path / "a.sock"), "ready", 0)
    assert (second["connected"], second["state"]) == (False, "off")


def test_statistics_count_what_hosts_do(ask: Ask, driver: NvmeDriver) -> None:
    driver.write(1, 0, bytes(4096))
    for _ in range(3):
        driver.read(1, 0, 1024)
    found = ask("statistics.get")
    (main,) = found["subsystems"]
    first, second = main["controllers"]
    assert (first["reads"], first["writes"]) == (3, 1)
    assert (first["bytes_read"], first["bytes_written"]) == (3072, 4096)
    assert (second["reads"], second["writes"], second["queues"]) == (0, 0, [])
    assert [queue["id"] for queue in first["queues"]] == [0, 1]
    assert [queue["waiting"] for queue in first["queues"]] == [0, 0]
    assert [queue["commands"] for queue in first["queues"]][1:] == [4]
    assert [queue["depth"] for queue in first["queues"]] == [0, 0]
    assert [space["size"] for space in main["namespaces"]] == [1 << 20, 1 << 30]
    used, unused = main["namespaces"]
    assert (used["reads"], used["writes"], used["bytes_read"], used["bytes_written"]) == (3, 1, 3072, 4096)
    assert 0 < used["longest_ns"] <= used["latency_ns"]
    assert (unused["reads"], unused["measured"], unused["latency_ns"]) == (0, 0, 0)
    assert ask("statistics.get")["time"] > found["time"]


def test_the_log_can_be_turned_up(ask: Ask) -> None:
    logger = logging.getLogger("outboard")
    before = logger.level
    try:
        assert ask("log.level", level="debug") == {"level": "debug"}
        assert logger.level == logging.DEBUG
        assert ask("log.level") == {"level": "debug"}
    finally:
        logger.setLevel(before)


def test_methods_tell_themselves_and_take_lists_too(ask: Ask) -> None:
    told = {method["name"]: method for method in ask("rpc.discover")}
    assert told.keys() == METHODS.keys()
    assert all(method["summary"] for method in told.values())
    add = told["namespace.add"]["params"]
    assert add["required"] == ["backend"]
    assert add["properties"]["block_size"]["default"] == 512
    every = [each for method in told.values() for each in method["params"]["properties"].values()]
    assert all(each["description"] for each in every), "each parameter says what it is"
    json.dumps(told)


def test_parameters_may_be_a_list(run: Run, tmp_path: Path) -> None:
    running = run()
    service = running.service
    assert METHODS["namespace.add"](service, ["ram:1M", 5]).nsid == 5
    with pytest.raises(Misfit, match="takes 1 parameters, not 2"):
        METHODS["log.level"](service, ["info", 1])


def test_which_of_several_subsystems_is_meant_has_to_be_said(run: Run, tmp_path: Path) -> None:
    described = document(tmp_path)
    described["subsystem"]["spare"] = {"controller": [controller(tmp_path / "spare.sock")]}
    run(described)
    with ControlClient(tmp_path / "control.sock") as client:
        assert client.call("subsystem.list") == ["main", "spare"]
        with pytest.raises(RemoteError, match="which subsystem is meant"):
            client.call("namespace.list")
        assert client.call("namespace.list", subsystem="spare") == []
        assert client.call("namespace.add", subsystem="spare", backend="ram:1M")["attached"] == [1]
        assert len(client.call("namespace.list", subsystem="main")) == 2


@pytest.mark.parametrize(
    ("namespaces", "error", "sentence"),
    [
        ([{"backend": "ram:1M"}, {"backend": "nbdx:a"}], StorageError, "namespace[1]: there is no storage"),
        ([{"backend": "ram:1M", "block_size": 8}], ConfigurationError, "namespace[0]: a block size of 8"),
        ([{"backend": "ram:1M", "nsid": 1}] * 2, ConfigurationError, "namespace[1]: namespace 1 is there"),
    ],
)
def test_what_cannot_be_opened_is_told_with_its_place_and_nothing_stays(
    run: Run, tmp_path: Path, namespaces: list[dict[str, Any]], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error) as told:
        run(document(tmp_path, *namespaces))
    assert str(told.value).startswith("test.toml: subsystem.main.")
    assert sentence in str(told.value)


def test_namespaces_that_say_which_they_are_come_first(run: Run, tmp_path: Path) -> None:
    running = run(document(tmp_path, {"backend": "ram:1M"}, {"backend": "ram:2M", "nsid": 1}))
    spaces = running.service.named(None).subsystem.namespaces
    assert {nsid: space.storage.size >> 20 for nsid, space in spaces.items()} == {1: 2, 2: 1}


def test_a_socket_that_is_taken_is_told_and_the_others_are_let_go(run: Run, tmp_path: Path) -> None:
    run()
    other = document(tmp_path)
    other["subsystem"]["main"]["controller"].insert(0, controller(tmp_path / "free.sock"))
    with pytest.raises(SetupError, match=r"main.controller\[1\]: another server listens on"):
        run(other)
    assert not (tmp_path / "free.sock").exists()


def test_what_outlives_a_power_cycle_is_in_the_state_file(run: Run, tmp_path: Path) -> None:
    described = document(tmp_path)
    described["subsystem"]["main"]["state"] = str(tmp_path / "state.json")
    running = run(described)
    running.service.named(None).subsystem.store.put("test", {"kept": True})
    running.close()
    assert json.loads((tmp_path / "state.json").read_text())["test"] == {"kept": True}


def test_a_service_ends_when_it_is_told_to(run: Run) -> None:
    running = run()
    waiting = threading.Thread(target=running.service.wait)
    waiting.start()
    running.service.stop()
    waiting.join(60)
    assert not waiting.is_alive()
