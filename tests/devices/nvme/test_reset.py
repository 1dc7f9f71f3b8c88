"""Every way of starting over, and what survives it (S01 to S06)."""

from collections.abc import Callable

import pytest

from outboard.devices.nvme.command import Command
from outboard.devices.nvme.spec import NSSR_KEY, AdminOpcode, Cns, IoOpcode
from outboard.devices.nvme.status import Status
from outboard.loop import Loop
from tests.devices.nvme.bench import Bench
from tests.devices.nvme.driver import ACQ, AQA, ASQ, CC, CC_ENABLE, NSSR, READY, Driver, QueuePair, ended
from tests.devices.nvme.test_interrupts import Listener, find_capability

DEVICE_CONTROL, FLR = 8, 1 << 15
D0, D3HOT, NO_SOFT_RESET = 0, 3, 1 << 3
"""In the control register of power management."""
MSIX_TABLE = 0x2000
PAUSED = 1 << 5
FLUSH = Command(IoOpcode.FLUSH, nsid=1)


def function_level_reset(bench: Bench) -> None:
    control = find_capability(bench, 0x10) + DEVICE_CONTROL
    bench.config.write(control, 2, bench.config.read(control, 2) | FLR)


RESETS: dict[str, Callable[[Bench], None]] = {
    "CC.EN": lambda bench: bench.driver.disable(),
    "NSSR": lambda bench: bench.bar.write32(NSSR, NSSR_KEY),
    "FLR": function_level_reset,
    "DEVICE_RESET": lambda bench: bench.device.reset(),
}
resets = pytest.mark.parametrize("reset", RESETS.values(), ids=RESETS)


def submit_many(pair: QueuePair) -> None:
    for _ in range(pair.entries - 1):
        pair.submit(FLUSH)
    pair.ring()


@pytest.mark.point("S01", "S02")
@resets
def test_a_reset_drops_what_is_in_flight_without_a_trace(
    bench: Bench, driver: Driver, reset: Callable[[Bench], None]
) -> None:
    bench.config.write(find_capability(bench, 0x11) + 2, 2, 0x8000)
    listener = Listener(bench, 2, 129)
    pair = driver.create_queue_pair(1, entries=256, vector=1)
    submit_many(pair)
    bench.step()
    done = len(pair.poll(acknowledge=False))
    assert 0 < done < 255
    listener.heard(1)
    before = driver.ram.read(pair.cq, 256 * 16)
    reset(bench)
    bench.settle()
    assert not driver.status & READY
    assert driver.ram.read(pair.cq, 256 * 16) == before
    assert listener.heard(1) == 0
    listener.close()


@pytest.mark.point("S01", "S02")
@resets
def test_after_a_reset_the_controller_starts_as_new(
    bench: Bench, driver: Driver, reset: Callable[[Bench], None]
) -> None:
    driver.create_queue_pair(1)
    for _ in range(3):
        reset(bench)
        bench.bus_master(True)
        driver.enable()
        assert driver.status & READY
        assert ended(driver.identify(Cns.CONTROLLER)) == Status.SUCCESS
        pair = driver.create_queue_pair(1)
        assert ended(pair.execute(FLUSH)) == Status.SUCCESS


@pytest.mark.point("S01")
def test_a_controller_reset_keeps_the_admin_queue_registers(driver: Driver) -> None:
    driver.disable()
    assert driver.bar.read32(AQA) == 31 | 31 << 16
    assert driver.bar.read64(ASQ) == driver.admin.sq
    driver.admin.restart()
    driver.bar.write32(CC, CC_ENABLE)
    assert ended(driver.identify(Cns.CONTROLLER)) == Status.SUCCESS


@pytest.mark.point("S02")
@pytest.mark.parametrize("reset", [function_level_reset, RESETS["DEVICE_RESET"]], ids=["FLR", "DEVICE_RESET"])
def test_a_function_reset_clears_registers_and_configuration_space(
    bench: Bench, driver: Driver, reset: Callable[[Bench], None]
) -> None:
    bench.config.write(find_capability(bench, 0x11) + 2, 2, 0x8000)
    bench.bar.write32(MSIX_TABLE, 0xFEE0_0000)
    bench.config.write(0x10, 4, 0xE000_0000)
    reset(bench)
    assert [bench.bar.read32(register) for register in (CC, AQA, ASQ, ACQ, 0x1C, MSIX_TABLE)] == [0] * 6
    assert bench.config.read(4, 2) == 0
    assert bench.config.read(0x10, 4) == 0x4
    assert bench.config.read(find_capability(bench, 0x11) + 2, 2) == 128
    assert not bench.device.msix.enabled


def function(bench: Bench) -> tuple[object, ...]:
    """What a driver has set up of the function: COMMAND, BAR0, the MSI-X capability, its vectors 0 to 2."""
    msix = bench.config.read(find_capability(bench, 0x11) + 2, 2)
    table = [bench.bar.read32(MSIX_TABLE + 4 * number) for number in range(3 * 4)]
    return bench.config.read(4, 2), bench.config.read64(0x10), msix, table


def set_up_function(bench: Bench) -> None:
    bench.config.write(0x10, 4, 0xE000_0000)
    bench.config.write(find_capability(bench, 0x11) + 2, 2, 0x8000)
    for vector in range(3):
        entry = (0xFEE0_0000 + vector, 0, 0x40 + vector, int(vector == 2))
        for number, value in enumerate(entry):
            bench.bar.write32(MSIX_TABLE + 16 * vector + 4 * number, value)


@pytest.mark.point("S02", "R13")
def test_a_subsystem_reset_leaves_configuration_space_and_the_table_of_vectors_alone(
    bench: Bench, driver: Driver
) -> None:
    set_up_function(bench)
    before = function(bench)
    bench.bar.write32(NSSR, NSSR_KEY)
    bench.settle()
    assert not driver.status & READY
    assert function(bench) == before
    assert bench.config.read(4, 2) & 6 == 6
    listener = Listener(bench, 2, 129)
    assert ended(driver.enable().create_queue_pair(1, vector=1).execute(FLUSH)) == Status.SUCCESS
    assert listener.heard(1) == 1
    listener.close()


@pytest.mark.point("S02")
def test_queues_and_vectors_are_there_still_after_d3hot(bench: Bench, driver: Driver) -> None:
    set_up_function(bench)
    listener = Listener(bench, 2, 129)
    pair = driver.create_queue_pair(1, vector=1)
    assert ended(pair.execute(FLUSH)) == Status.SUCCESS
    before, heard = function(bench), listener.heard(1)
    control = find_capability(bench, 1) + 4
    assert bench.config.read(control, 2) & NO_SOFT_RESET, "who has said so need not be set up anew"
    for state in (D3HOT, D0):
        bench.config.write(control, 2, state)
        bench.settle()
        assert bench.config.read(control, 2) & 3 == state
    assert function(bench) == before
    assert driver.status == READY
    assert ended(pair.execute(FLUSH)) == Status.SUCCESS
    assert listener.heard(1) == heard == 1
    listener.close()


@pytest.mark.point("S01")
@resets
def test_what_is_stored_survives_a_reset(
    bench: Bench, driver: Driver, reset: Callable[[Bench], None]
) -> None:
    pair = driver.create_queue_pair(1)
    driver.ram.write(driver.data, b"kept" * 128)
    assert ended(pair.execute(driver.rw(IoOpcode.WRITE, 7, 1, driver.data, 512))) == Status.SUCCESS
    reset(bench)
    assert bench.device.namespaces[1].storage.read(7 * 512, 512) == b"kept" * 128


@pytest.mark.point("S03")
def test_a_thousand_restarts_leak_nothing(bench: Bench) -> None:
    driver = bench.driver.enable()
    for _ in range(1000):
        driver.bar.write32(CC, 0)
        driver.admin.restart()
        driver.bar.write32(CC, CC_ENABLE)
        assert driver.status == READY
    assert ended(driver.identify(Cns.CONTROLLER)) == Status.SUCCESS
    assert not bench.loop.run_pending()


@pytest.mark.point("S03")
def test_doorbells_of_a_controller_that_is_off_are_ignored(bench: Bench) -> None:
    for doorbell in range(0x1000, 0x1020, 4):
        bench.bar.write32(doorbell, 1)
    bench.settle()
    driver = bench.driver.enable()
    assert driver.admin.poll() == []
    assert ended(driver.identify(Cns.CONTROLLER)) == Status.SUCCESS


@pytest.mark.point("S04")
def test_the_next_client_finds_the_state_of_the_last_one(bench: Bench, driver: Driver) -> None:
    pair = driver.create_queue_pair(1)
    submit_many(pair)
    bench.device.disconnected()
    bench.settle()
    assert driver.status == READY
    bench.map()
    bench.device.connected(None)
    bench.settle()
    assert len(pair.poll()) == 15


@pytest.mark.point("S04")
def test_the_next_client_may_come_by_another_server(bench: Bench, driver: Driver) -> None:
    """What the last one has put off goes with it."""
    cid = driver.admin.submit(Command(AdminOpcode.KEEP_ALIVE))
    driver.admin.ring()
    bench.device.disconnected()
    bench.loop.close()
    bench.loop = Loop()
    bench.device.attach(bench.loop)
    bench.device.connected(None)
    bench.settle()
    assert ended(driver.admin.wait(cid)) == Status.SUCCESS


def test_the_next_client_can_start_over(bench: Bench, driver: Driver) -> None:
    submit_many(driver.create_queue_pair(1))
    bench.device.disconnected()
    bench.settle()
    bench.map()
    bench.device.connected(None)
    driver.disable()
    assert driver.enable().status == READY
    assert ended(driver.identify(Cns.CONTROLLER)) == Status.SUCCESS


@pytest.mark.point("S06", "N04")
def test_shutdown_flushes_every_namespace_and_survives_one_that_fails(
    bench: Bench, driver: Driver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from outboard.errors import StorageError

    def broken() -> None:
        raise StorageError("the medium is broken")

    flushed: list[int] = []
    monkeypatch.setattr(bench.device.namespaces[1].storage, "flush", broken)
    monkeypatch.setattr(bench.device.namespaces[2].storage, "flush", lambda: flushed.append(2))
    bench.bar.write32(CC, CC_ENABLE | 1 << 14)
    bench.settle()
    assert driver.status == READY | 2 << 2
    assert flushed == [2]
    assert "namespace 1 may have lost data" in caplog.text


@pytest.mark.point("S07")
@pytest.mark.parametrize("ended_by", ["time", "reset"])
def test_processing_pauses_and_goes_on(bench: Bench, ended_by: str) -> None:
    driver = bench.driver.enable()
    pair = driver.create_queue_pair(1)
    bench.device.pause(0.05)
    assert driver.status == READY | PAUSED
    flush = pair.submit(Command(IoOpcode.FLUSH, nsid=1))
    pair.ring()
    keep_alive = driver.admin.submit(Command(AdminOpcode.KEEP_ALIVE))
    driver.admin.ring()
    bench.settle()
    assert pair.poll() == driver.admin.poll() == []
    if ended_by == "reset":
        driver.disable()
        pair = driver.enable().create_queue_pair(1)
        assert driver.status == READY
        assert ended(pair.execute(Command(IoOpcode.FLUSH, nsid=1))) == Status.SUCCESS
        return
    assert ended(pair.wait(flush)) == ended(driver.admin.wait(keep_alive)) == Status.SUCCESS
    assert driver.status == READY


def test_what_is_not_enabled_does_not_pause(bench: Bench) -> None:
    bench.device.pause(1)
    assert bench.driver.status == 0
