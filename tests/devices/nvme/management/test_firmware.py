"""Firmware: images in parts, slots, and when what is in one becomes active; the security protocols."""

import pytest

from outboard.devices.nvme import Store
from outboard.devices.nvme.layouts import FIRMWARE_LOG
from outboard.devices.nvme.spec import AdminOpcode, LogId
from outboard.devices.nvme.status import Status
from outboard.storage import RamStorage
from tests.devices.nvme.driver import PAGE, do_not_retry, ended
from tests.devices.nvme.management.conftest import MakeHosts
from tests.devices.nvme.management.host import FIRMWARE_STARTING, MIB, Host

REPLACE, REPLACE_AND_ACTIVATE, ACTIVATE, ACTIVATE_NOW = 0, 1, 2, 3
PROCESSING_PAUSED = 1 << 5


@pytest.fixture
def host(make_hosts: MakeHosts) -> Host:
    return make_hosts(1, RamStorage(MIB))[0]


def image(revision: str, pages: int = 2) -> bytes:
    return f"outboard-firmware {revision}\n".encode().ljust(pages * PAGE, b"\xf0")


def download(host: Host, data: bytes, offset: int = 0, size: int = PAGE) -> Status:
    """Firmware Image Download of one part."""
    host.driver.ram.write(host.driver.data, data[:PAGE])
    return ended(host.admin(AdminOpcode.FIRMWARE_DOWNLOAD, cdw10=size // 4 - 1, cdw11=offset // 4))


def commit(host: Host, action: int, slot: int = 0) -> Status:
    return ended(host.admin(AdminOpcode.FIRMWARE_COMMIT, cdw10=slot | action << 3))


def put(host: Host, revision: str, slot: int, action: int = REPLACE) -> Status:
    """Download an image, its second half first, and commit it."""
    data = image(revision)
    for offset in (PAGE, 0):
        assert download(host, data[offset:], offset) == Status.SUCCESS
    return commit(host, action, slot)


def slots(host: Host) -> tuple[int, list[str]]:
    """AFI, and the revisions in slots 1 to 3."""
    log = FIRMWARE_LOG.decode(host.log(LogId.FIRMWARE_SLOT))
    names = [log[f"slot{number}"] for number in range(1, 8)]
    assert names[3:] == [bytes(8)] * 4
    return int(log["active"]), [bytes(name).rstrip(b" \0").decode() for name in names[:3]]


def running(host: Host) -> bytes:
    revision = host.controller()["fr"]
    assert isinstance(revision, bytes)
    return revision


@pytest.mark.point("M04", "L04")
def test_an_image_is_put_into_a_slot_and_becomes_active_with_a_reset(host: Host) -> None:
    assert put(host, "1.1", 2) == Status.SUCCESS
    assert slots(host) == (1, ["1.0", "1.1", ""])
    assert running(host) == b"1.0     "
    assert commit(host, ACTIVATE, 2) == Status.FIRMWARE_NEEDS_CONTROLLER_RESET
    assert slots(host) == (1 | 2 << 4, ["1.0", "1.1", ""])
    assert ended(host.admin(AdminOpcode.SANITIZE, cdw10=2)) == Status.FIRMWARE_NEEDS_CONTROLLER_RESET
    host.restart()
    assert slots(host) == (2, ["1.0", "1.1", ""])
    assert running(host) == b"1.1     "
    assert put(host, "2.0-beta", 3, REPLACE_AND_ACTIVATE) == Status.FIRMWARE_NEEDS_CONTROLLER_RESET
    host.restart()
    assert (slots(host), running(host)) == ((3, ["1.0", "1.1", "2.0-beta"]), b"2.0-beta")
    assert commit(host, ACTIVATE, 1) == Status.FIRMWARE_NEEDS_CONTROLLER_RESET
    host.restart()
    assert running(host) == b"1.0     "


@pytest.mark.point("M04", "E02", "S07")
def test_firmware_is_activated_at_once_and_every_host_is_told(make_hosts: MakeHosts) -> None:
    host, other = make_hosts(2, RamStorage(MIB))
    for each in (host, other):
        each.listen()
    put(host, "1.1", 2)
    cid = host.submit(AdminOpcode.FIRMWARE_COMMIT, cdw10=2 | ACTIVATE_NOW << 3)
    assert host.driver.status & PROCESSING_PAUSED
    assert other.driver.status & PROCESSING_PAUSED
    assert commit(other, ACTIVATE, 1) == Status.FIRMWARE_ACTIVATION_PROHIBITED
    assert ended(host.driver.admin.wait(cid)) == Status.SUCCESS
    for each in (host, other):
        assert not each.driver.status & PROCESSING_PAUSED
        assert each.heard() == [FIRMWARE_STARTING]
        assert (slots(each)[0], running(each)) == (2, b"1.1     ")


@pytest.mark.point("M04")
def test_what_was_downloaded_is_activated_at_once_if_it_is_asked_for(host: Host) -> None:
    assert put(host, "1.2", 3, ACTIVATE_NOW) == Status.SUCCESS
    assert slots(host) == (3, ["1.0", "", "1.2"])
    assert commit(host, ACTIVATE_NOW, 1) == Status.SUCCESS
    assert slots(host) == (1, ["1.0", "", "1.2"])


@pytest.mark.point("M04", "S01")
def test_a_reset_in_the_middle_of_an_activation_does_no_harm(host: Host) -> None:
    put(host, "1.1", 2)
    host.submit(AdminOpcode.FIRMWARE_COMMIT, cdw10=2 | ACTIVATE_NOW << 3)
    host.restart()
    host.until(lambda: slots(host)[0] == 2)
    assert running(host) == b"1.1     "


@pytest.mark.point("M04")
def test_slots_outlive_a_power_cycle_and_what_waits_for_a_reset_is_active_then(make_hosts: MakeHosts) -> None:
    store = Store()
    (host,) = make_hosts(1, RamStorage(MIB), store=store)
    put(host, "1.1", 2)
    put(host, "1.2", 3, REPLACE_AND_ACTIVATE)
    (again,) = make_hosts(1, RamStorage(MIB), store=store)
    assert (slots(again), running(again)) == ((3, ["1.0", "1.1", "1.2"]), b"1.2     ")


@pytest.mark.point("M04")
def test_the_controller_chooses_a_slot_that_is_not_active(host: Host) -> None:
    assert put(host, "1.1", 0, ACTIVATE_NOW) == Status.SUCCESS
    assert put(host, "1.2", 0) == Status.SUCCESS
    assert slots(host) == (3, ["1.0", "1.2", "1.1"])


@pytest.mark.point("M04")
@pytest.mark.parametrize(
    ("offset", "size"),
    [
        pytest.param(2048, PAGE, id="offset"),
        pytest.param(0, 2048, id="size"),
        pytest.param(0, 4, id="one dword"),
        pytest.param(16 * MIB, PAGE, id="behind the largest image"),
        pytest.param((1 << 34) - PAGE, PAGE, id="far away"),
        pytest.param(0, 1 << 34, id="16 GiB"),
    ],
)
def test_parts_that_do_not_fit_the_granularity_or_the_limit_are_refused(
    host: Host, offset: int, size: int
) -> None:
    assert download(host, image("1.1"), offset, size) == Status.INVALID_FIELD
    assert commit(host, REPLACE, 2) == Status.INVALID_FIRMWARE_IMAGE, "nothing came"


@pytest.mark.point("M04")
def test_parts_that_overlap_are_refused(host: Host) -> None:
    data = image("1.1", 4)
    assert download(host, data, 0) == download(host, data, 2 * PAGE) == Status.SUCCESS
    assert download(host, data, 0) == Status.OVERLAPPING_RANGE
    host.driver.ram.write(host.driver.data, data[PAGE : 2 * PAGE])
    assert download(host, data[PAGE:], PAGE) == Status.SUCCESS
    assert commit(host, REPLACE, 2) == Status.SUCCESS
    assert download(host, data, 0) == Status.SUCCESS, "what was committed is not there any more"


@pytest.mark.point("M04")
@pytest.mark.parametrize(
    "data",
    [
        bytes(PAGE),
        image("")[:PAGE],
        image("123456789")[:PAGE],
        image("1 1")[:PAGE],
        b"outboard-firmware 1.1".ljust(PAGE, b"x"),
        b" " + image("1.1")[: PAGE - 1],
    ],
)
def test_anything_else_is_no_image(host: Host, data: bytes) -> None:
    assert download(host, data) == Status.SUCCESS
    for action in (REPLACE, REPLACE_AND_ACTIVATE, ACTIVATE_NOW):
        assert commit(host, action, 2) == Status.INVALID_FIRMWARE_IMAGE
    assert slots(host) == (1, ["1.0", "", ""])


@pytest.mark.point("M04")
@pytest.mark.parametrize(
    ("action", "slot", "status"),
    [
        (REPLACE, 2, Status.INVALID_FIRMWARE_IMAGE),
        (REPLACE_AND_ACTIVATE, 2, Status.INVALID_FIRMWARE_IMAGE),
        (ACTIVATE, 2, Status.INVALID_FIRMWARE_IMAGE),
        (ACTIVATE_NOW, 2, Status.INVALID_FIRMWARE_IMAGE),
        (ACTIVATE, 0, Status.INVALID_FIRMWARE_SLOT),
        (ACTIVATE, 4, Status.INVALID_FIRMWARE_SLOT),
        (REPLACE, 7, Status.INVALID_FIRMWARE_SLOT),
        (4, 2, Status.INVALID_FIELD),
        (6, 2, Status.INVALID_FIELD),
        (7, 2, Status.INVALID_FIELD),
    ],
)
def test_what_cannot_be_committed_is_refused(host: Host, action: int, slot: int, status: Status) -> None:
    completion = host.admin(AdminOpcode.FIRMWARE_COMMIT, cdw10=slot | action << 3)
    assert ended(completion) == status
    assert do_not_retry(completion)


@pytest.mark.point("M04")
def test_what_is_built_in_is_not_replaced(host: Host) -> None:
    assert put(host, "6.6", 1) == Status.INVALID_FIRMWARE_SLOT
    assert slots(host) == (1, ["1.0", "", ""])


@pytest.mark.point("M04")
def test_an_image_with_a_gap_is_none_and_a_reset_forgets_the_parts(make_hosts: MakeHosts) -> None:
    host, other = make_hosts(2, RamStorage(MIB))
    data = image("1.1", 3)
    download(host, data, 0)
    download(host, data, 2 * PAGE)
    assert commit(host, REPLACE, 2) == Status.INVALID_FIRMWARE_IMAGE
    assert commit(other, REPLACE, 2) == Status.INVALID_FIRMWARE_IMAGE, "another controller's parts"
    host.restart()
    assert download(host, data[PAGE:], PAGE) == Status.SUCCESS
    assert commit(host, REPLACE, 2) == Status.INVALID_FIRMWARE_IMAGE


def test_identify_says_what_slots_there_are(host: Host) -> None:
    data = host.controller()
    assert (data["frmw"], data["fwug"]) == (0b1_011_1, 1)
    assert data["mtfa"] == 10
    assert int(data["oacs"]) & 0b101 == 0b101
    assert int(data["oaes"]) & 1 << 9


@pytest.mark.point("M04")
def test_the_only_security_protocol_says_so(host: Host) -> None:
    def receive(protocol: int, specific: int, size: int) -> Status:
        host.driver.ram.write(host.driver.data, b"\xee" * 16)
        dword = protocol << 24 | specific << 8
        return ended(host.admin(AdminOpcode.SECURITY_RECEIVE, cdw10=dword, cdw11=size))

    def received(size: int) -> bytes:
        return host.driver.ram.read(host.driver.data, size)

    assert receive(0, 0, 12) == Status.SUCCESS
    assert received(16) == bytes(6) + bytes([0, 1, 0]) + bytes(3) + b"\xee" * 4
    assert receive(0, 0, 4) == receive(0, 1, 4) == receive(0, 0, 0) == Status.SUCCESS
    assert received(1) == b"\xee", "nothing was asked for"
    assert receive(0, 2, 12) == receive(1, 1, 512) == receive(0xEF, 0, 512) == Status.INVALID_FIELD
    assert receive(0, 0, 0xFFFF_FFFF) == Status.INVALID_FIELD
    for protocol in (0, 1, 2, 0xEA):
        completion = host.admin(AdminOpcode.SECURITY_SEND, cdw10=protocol << 24, cdw11=512)
        assert ended(completion) == Status.INVALID_FIELD


@pytest.mark.point("M04")
def test_a_download_that_was_no_image_is_not_in_the_way_of_the_next(host: Host) -> None:
    assert download(host, b"something else".ljust(PAGE)) == Status.SUCCESS
    assert commit(host, REPLACE, 1) == Status.INVALID_FIRMWARE_SLOT
    assert commit(host, REPLACE, 2) == Status.INVALID_FIRMWARE_IMAGE
    assert put(host, "1.1", 2) == Status.SUCCESS
    assert slots(host) == (1, ["1.0", "1.1", ""])
