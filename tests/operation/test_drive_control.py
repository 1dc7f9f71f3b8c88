"""A drive that its operator resizes, protects, wears out, breaks and cuts from its power in use."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from outboard.client import Client
from outboard.devices.nvme.layouts import HEALTH_LOG
from outboard.devices.nvme.spec import AdminOpcode, FeatureId, LogId
from outboard.drivers.nvme import CNS_NAMESPACE, SET_FEATURES, NvmeDriver
from outboard.errors import Fault, RemoteError
from outboard.operation import ControlClient
from tests.operation.conftest import Ask, Run, document

Use = Callable[..., tuple[Ask, Client, NvmeDriver]]


@pytest.fixture
def use(run: Run, tmp_path: Path) -> Iterator[Use]:
    """``use(*namespaces, **of_the_subsystem)``: the control socket, and a host of the first controller."""
    open_: list[ControlClient | NvmeDriver | Client] = []

    def start(*namespaces: dict[str, Any], **options: Any) -> tuple[Ask, Client, NvmeDriver]:
        described = document(tmp_path, *namespaces)
        described["subsystem"]["main"] |= options
        run(described)
        control, client = ControlClient(tmp_path / "control.sock"), Client(tmp_path / "a.sock")
        driver = NvmeDriver(client)
        open_.extend((control, client))
        return control.call, client, driver

    yield start
    for each in open_:
        each.close()


def blocks(driver: NvmeDriver, nsid: int) -> int:
    return int.from_bytes(driver.identify(CNS_NAMESPACE, nsid)[:8], "little")


def test_a_namespace_grows_and_shrinks_with_what_is_in_it(use: Use) -> None:
    ask, _, driver = use()
    driver.write(1, 512, b"kept".ljust(512))
    assert ask("namespace.resize", nsid=1, size="4M")["size"] == 4 << 20
    assert blocks(driver, 1) == 8192
    driver.write(1, 3 << 20, bytes(512))
    assert ask("namespace.resize", nsid=1, size=8192)["size"] == 8192
    assert (blocks(driver, 1), driver.read(1, 512, 512)[:4]) == (16, b"kept")
    with pytest.raises(RemoteError, match="Read"):
        driver.read(1, 8192, 512)


def test_what_cannot_be_resized_stays_as_it_is(use: Use) -> None:
    ask, *_ = use({"backend": "ram:1M"})
    before = ask("namespace.list")
    for params, sentence in (
        ({"nsid": 1, "size": 100}, "100 bytes hold no block of namespace 1"),
        ({"nsid": 7, "size": "2M"}, "there is no namespace 7 in main: there is 1"),
        ({"nsid": 1, "size": "much"}, "'much' is not a size"),
    ):
        with pytest.raises(RemoteError, match=sentence):
            ask("namespace.resize", **params)
    assert ask("namespace.list") == before


def test_a_namespace_is_protected_against_writes_and_no_longer(use: Use) -> None:
    ask, _, driver = use()
    for protection in ("write_protect", "until_power_cycle", "permanent"):
        assert ask("namespace.protect", nsid=1, protection=protection)["protection"] == protection
        with pytest.raises(RemoteError, match="Write"):
            driver.write(1, 0, bytes(512))
        driver.read(1, 0, 512)
    assert ask("namespace.protect", nsid=1, protection="none")["protection"] == "none"
    driver.write(1, 0, bytes(512))


def test_a_namespace_is_limited_and_no_longer(use: Use) -> None:
    ask, _, driver = use({"backend": "ram:1M", "iops": 50, "write_bytes_per_second": "1M"})
    began = time.monotonic()
    for _ in range(10):
        driver.read(1, 0, 512)
    assert time.monotonic() - began > 0.1, "50 a second, of which a few were saved up"
    told = ask("namespace.set_qos", nsid=1, iops=0)
    assert (told["iops"], told["write_bytes_per_second"]) == (0, 1 << 20), "what was left out stays"
    ask("namespace.set_qos", nsid=1, write_bytes_per_second=0)
    began = time.monotonic()
    for _ in range(100):
        driver.write(1, 0, bytes(65536))
    assert time.monotonic() - began < 6, "which were six seconds' worth"
    with pytest.raises(RemoteError, match="iops is -1: it is 0 to 10000000"):
        ask("namespace.set_qos", nsid=1, iops=-1)


def test_a_host_cannot_write_what_is_read_only(use: Use) -> None:
    ask, _, driver = use({"backend": "ram:1M", "read_only": True}, {"backend": "ram:1M"})
    assert [each["protection"] for each in ask("namespace.list")] == ["until_power_cycle", "none"]
    with pytest.raises(RemoteError, match="Write"):
        driver.write(1, 0, bytes(512))
    with pytest.raises(RemoteError, match="Set Features"):
        driver.admin("Set Features", SET_FEATURES, nsid=1, cdw10=FeatureId.NAMESPACE_WRITE_PROTECTION)
    driver.write(2, 0, bytes(512))


def test_hosts_see_the_health_that_the_operator_says(use: Use) -> None:
    ask, client, driver = use()
    assert ask("health.get")["temperature"] == 310
    told = ask("health.set", temperature=350, spare=5, percentage_used=98)
    assert (told["temperature"], told["spare"], told["spare_threshold"]) == (350, 5, 10)
    ram = client.memory(4096)
    driver.admin(
        "Get Log Page",
        AdminOpcode.GET_LOG_PAGE,
        nsid=0xFFFF_FFFF,
        prp1=ram.address,
        cdw10=LogId.HEALTH | 127 << 16,
    )
    page = HEALTH_LOG.decode(ram.read(0, 512))
    assert (page["temperature"], page["available_spare"], page["percentage_used"]) == (350, 5, 98)
    assert int(page["critical_warning"]) & 1, "the spare is below its threshold"
    ask("health.set", read_only=True)
    with pytest.raises(RemoteError, match="Write"):
        driver.write(1, 0, bytes(512))
    ask("health.set", read_only=False)
    driver.write(1, 0, bytes(512))
    with pytest.raises(RemoteError, match="spare is 101: it is 0 to 100"):
        ask("health.set", spare=101)


def test_zones_are_told_and_fail(use: Use) -> None:
    ask, _, driver = use({"backend": "ram:1M", "zoned": True, "zone_size": "256K", "zone_capacity": "8K"})
    driver.write(1, 0, bytes(8192))
    driver.write(1, 256 << 10, bytes(512))
    first, second, *_ = ask("zone.list", nsid=1)
    assert first == {"zone": 0, "state": "full", "start": 0, "capacity": 16, "pointer": first["pointer"]}
    assert (second["state"], second["start"], second["pointer"]) == ("implicitly_open", 512, 513)
    assert [each["zone"] for each in ask("zone.list", nsid=1, first=2, count=1)] == [2]
    assert ask("zone.recommend_reset", nsid=1, zone=0) is None
    assert ask("zone.set_state", nsid=1, zone=1, state="read_only")["state"] == "read_only"
    with pytest.raises(RemoteError, match="Write"):
        driver.write(1, (256 << 10) + 512, bytes(512))
    driver.read(1, 256 << 10, 512)
    ask("zone.set_state", nsid=1, zone=1, state="offline")
    with pytest.raises(RemoteError, match="Read"):
        driver.read(1, 256 << 10, 512)
    for method, params, sentence in (
        ("zone.set_state", {"zone": 9, "state": "offline"}, "there are zones 0 to 3, not 9"),
        ("zone.set_state", {"zone": 1, "state": "full"}, "it is one of read_only, offline"),
        ("zone.recommend_reset", {"zone": 3}, "zone 3 is not full"),
    ):
        with pytest.raises(RemoteError, match=sentence) as refused:
            ask(method, nsid=1, **params)
        assert refused.value.fault is Fault.CALLER, "who asked is to blame, no author of a device"


def test_what_has_no_zones_and_no_placement_says_so(use: Use) -> None:
    ask, *_ = use()
    with pytest.raises(RemoteError, match="namespace 1 has no zones"):
        ask("zone.list", nsid=1)
    with pytest.raises(RemoteError, match="main has no data placement"):
        ask("placement.show")


def test_data_placement_is_configured_and_told(use: Use) -> None:
    handles = {"backend": "ram:1M", "placement_handles": [2, 0]}
    ask, _, driver = use(handles, {"backend": "ram:1M"}, placement={"handles": 4, "unit": "64K"})
    driver.write(1, 0, bytes(4096))
    driver.write(2, 0, bytes(512))
    told = ask("placement.show")
    assert (told["groups"], told["unit"], told["host_bytes"]) == (1, 64 << 10, 4608)
    assert [(each["used_by"], each["bytes_written"]) for each in told["handles"]] == [
        ("hosts", 0),
        ("nobody", 0),
        ("hosts", 4096),
        ("controller", 512),
    ]


def test_a_power_cut_loses_what_was_not_flushed(use: Use) -> None:
    ask, _, driver = use({"backend": "volatile:ram:1M"})
    driver.write(1, 0, b"flushed".ljust(512))
    driver.flush(1)
    for number in range(1, 33):
        driver.write(1, number * 512, b"written".ljust(512))
    assert ask("power.cut", seed=1) is None
    assert [each["state"] for each in ask("controller.list")] == ["off", "off"]
    _, second = ask("controller.list")
    with Client(second["place"]) as client, NvmeDriver(client) as other:
        assert other.read(1, 0, 512)[:7] == b"flushed"
        assert {other.read(1, number * 512, 512)[:7] for number in range(1, 33)} == {
            b"written",
            bytes(7),
        }


def test_a_controller_fails_and_the_other_path_goes_on(use: Use, tmp_path: Path) -> None:
    ask, client, _ = use()
    with pytest.raises(RemoteError, match="controller 2 is not in use: no host has made it ready"):
        ask("controller.fail", cntlid=2)
    assert ask("controller.fail", cntlid=1)["state"] == "failed"
    with pytest.raises(RemoteError, match="controller 1 is not in use"):
        ask("controller.pause", cntlid=1, seconds=1)
    with Client(tmp_path / "b.sock") as other, NvmeDriver(other) as second:
        second.write(1, 0, bytes(512))
        client.reset()
        with NvmeDriver(client) as first:
            first.read(1, 0, 512)
    assert [each["state"] for each in ask("controller.list")] == ["off", "off"]


def test_a_controller_pauses_and_loses_nothing(use: Use) -> None:
    ask, _, driver = use()
    ask("controller.pause", cntlid=1, seconds=0.05)
    driver.write(1, 0, b"late".ljust(512))
    assert driver.read(1, 0, 512)[:4] == b"late"
    with pytest.raises(RemoteError, match="seconds is -1: it is 0 to 3600"):
        ask("controller.pause", cntlid=1, seconds=-1)


def test_a_controller_is_pulled_and_plugged_in_again(use: Use) -> None:
    ask, client, _ = use()
    ask("controller.pull", cntlid=1)
    assert client.bar(0).read32(0x1C) == 0xFFFF_FFFF
    ask("controller.plug", cntlid=1)
    with NvmeDriver(client) as driver:
        driver.read(1, 0, 512)
