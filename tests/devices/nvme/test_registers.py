"""Registers as Linux, SeaBIOS, OVMF and Windows read and write them."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outboard.devices.nvme.command import Command
from outboard.devices.nvme.spec import NSSR_KEY, AdminOpcode, Cns
from outboard.devices.nvme.status import Status
from tests.devices.nvme.bench import Bench
from tests.devices.nvme.driver import (
    ACQ,
    AQA,
    ASQ,
    CAP,
    CC,
    CC_ENABLE,
    CSTS,
    FATAL,
    INTMC,
    INTMS,
    NSSR,
    READY,
    VS,
    Driver,
    ended,
)

CMBLOC, CMBSZ, CRTO = 0x38, 0x3C, 0x68


@pytest.mark.point("R01")
def test_capabilities_read_alike_in_any_size(bench: Bench) -> None:
    bar = bench.bar
    whole = bar.read64(CAP)
    assert whole == bar.read32(CAP) | bar.read32(CAP + 4) << 32
    assert whole == sum(bar.read(CAP + i, 1) << 8 * i for i in range(8))
    assert whole == sum(bar.read(CAP + i, 2) << 8 * i for i in (0, 2, 4, 6))


@pytest.mark.point("R01", "R15")
def test_capabilities_are_what_boot_firmware_demands(bench: Bench) -> None:
    cap = bench.bar.read64(CAP)
    assert cap & 0xFFFF == 4095
    assert cap >> 16 & 1, "CQR"
    assert cap >> 17 & 3 == 1, "AMS: weighted round robin with urgent"
    assert cap >> 24 & 0xFF, "TO: SeaBIOS takes 0 for a timeout"
    assert cap >> 32 & 0xF == 0, "DSTRD"
    assert cap >> 37 & 1, "CSS: the NVM command set"
    assert cap >> 43 & 3 == 1, "CSS: or all there are"
    assert cap >> 48 & 0xFF == 0, "MPSMIN, MPSMAX: 4 KiB"


@pytest.mark.point("R01")
@pytest.mark.parametrize("register", [CAP, CAP + 4, VS, CMBLOC, CMBSZ, CRTO])
def test_read_only_registers_ignore_writes(bench: Bench, register: int) -> None:
    before = bench.bar.read32(register)
    bench.bar.write32(register, ~before & 0xFFFF_FFFF)
    assert bench.bar.read32(register) == before


@pytest.mark.point("R04")
def test_the_ready_timeouts_agree(bench: Bench) -> None:
    cap = bench.bar.read64(CAP)
    assert cap >> 59 & 3 == 1, "CRMS: ready with media, as VS 2.0 has it"
    crto = bench.bar.read32(CRTO)
    assert crto & 0xFFFF >= cap >> 24 & 0xFF
    assert crto >> 16 <= crto & 0xFFFF


@pytest.mark.point("R04")
def test_ready_follows_enable_both_ways(bench: Bench) -> None:
    driver = bench.driver
    assert driver.status == 0
    driver.enable()
    assert driver.status == READY
    driver.disable()
    assert driver.status == 0
    driver.disable()
    assert driver.status == 0


@pytest.mark.point("R05")
@pytest.mark.parametrize(
    ("cc", "ready"),
    [
        pytest.param(CC_ENABLE, True, id="as Linux writes it"),
        pytest.param(1, True, id="entry sizes follow later"),
        pytest.param(CC_ENABLE | 1 << 24, True, id="CRIME, which is not offered"),
        pytest.param(CC_ENABLE | 1 << 7, False, id="8 KiB pages"),
        pytest.param(CC_ENABLE | 15 << 7, False, id="128 MiB pages"),
        pytest.param(CC_ENABLE | 1 << 11, True, id="weighted round robin"),
        pytest.param(CC_ENABLE | 2 << 11, False, id="reserved arbitration"),
        pytest.param(CC_ENABLE | 7 << 11, False, id="vendor's arbitration"),
        pytest.param(CC_ENABLE | 6 << 4, True, id="all command sets"),
        pytest.param(CC_ENABLE | 7 << 4, False, id="admin commands only"),
        pytest.param(0x0045_0001, False, id="IOSQES 5"),
        pytest.param(0x0056_0001, False, id="IOCQES 5"),
    ],
)
def test_a_configuration_that_cannot_be_fails_and_can_be_mended(bench: Bench, cc: int, ready: bool) -> None:
    driver = bench.driver.enable(cc=cc)
    assert driver.status == (READY if ready else FATAL)
    driver.disable()
    assert driver.status == 0
    assert driver.enable().status == READY


@pytest.mark.point("R05")
@pytest.mark.parametrize("aqa", [0, 0x001F, 0x001F_0000])
def test_admin_queues_of_one_entry_cannot_be(bench: Bench, aqa: int) -> None:
    bench.bar.write32(AQA, aqa)
    bench.bar.write32(CC, CC_ENABLE)
    assert bench.driver.status == FATAL


@pytest.mark.point("R05")
def test_io_queues_need_the_entry_sizes(bench: Bench) -> None:
    driver = bench.driver.enable(cc=1)
    command = Command(AdminOpcode.CREATE_IO_CQ, prp1=driver.data, cdw10=1 | 15 << 16, cdw11=1)
    assert ended(driver.admin.execute(command)) == Status.INVALID_QUEUE_SIZE
    bench.bar.write32(CC, CC_ENABLE)
    assert ended(driver.admin.execute(command)) == Status.SUCCESS


@pytest.mark.point("R06")
def test_admin_queue_registers_read_back_also_while_enabled(driver: Driver) -> None:
    bar = driver.bar
    assert bar.read32(AQA) == 31 | 31 << 16
    for register, address in ((ASQ, driver.admin.sq), (ACQ, driver.admin.cq)):
        assert bar.read64(register) == address
        assert bar.read32(register) | bar.read32(register + 4) << 32 == address
    driver.disable()
    assert bar.read64(ASQ) == driver.admin.sq
    assert bar.read32(AQA) == 31 | 31 << 16


@pytest.mark.point("R06", "R07")
def test_admin_queue_addresses_take_halves_and_leave_out_their_low_bits(bench: Bench) -> None:
    for register in (ASQ, ACQ):
        bench.bar.write32(register, 0x1234_5FFF)
        bench.bar.write32(register + 4, 0x8765_4321)
        assert bench.bar.read64(register) == 0x8765_4321_1234_5000
    bench.bar.write32(AQA, 0xFFFF_FFFF)
    assert bench.bar.read32(AQA) == 0x0FFF_0FFF


@pytest.mark.point("R08")
@pytest.mark.parametrize(("sq", "cq"), [(2, 2), (2, 3), (64, 256), (5, 2), (4096, 4096)])
def test_admin_queues_of_any_two_sizes_work_and_wrap(bench: Bench, sq: int, cq: int) -> None:
    driver = bench.driver.enable(sq, cq)
    for _ in range(20 if sq < 4096 else 4100):
        assert ended(driver.identify(Cns.CONTROLLER)) == Status.SUCCESS


@pytest.mark.point("R09")
def test_the_interrupt_mask_is_set_by_one_register_and_cleared_by_the_other(bench: Bench) -> None:
    bar = bench.bar
    bar.write32(INTMS, 0xF0)
    bar.write32(INTMS, 0x0F)
    assert bar.read32(INTMS) == bar.read32(INTMC) == 0xFF
    bar.write32(INTMC, 0x3C)
    assert bar.read32(INTMS) == bar.read32(INTMC) == 0xC3
    bench.driver.enable()
    bench.driver.disable()
    assert bar.read32(INTMS) == 0


@pytest.mark.point("R10")
def test_what_is_reserved_or_not_offered_reads_zero_and_ignores_writes(bench: Bench) -> None:
    for offset in (0x18, *range(0x38, 0x68, 4), *range(0x6C, 0x1000, 4), 0x2FF8, 0x3FF8):
        bench.bar.write32(offset, 0xFFFF_FFFF)
        assert bench.bar.read32(offset) == 0, hex(offset)
    assert bench.driver.enable().status == READY


@pytest.mark.point("R11")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(
    st.integers(0, 0x3FFF) | st.integers(0, 0x70) | st.integers(0xFF8, 0x1020),
    st.sampled_from([1, 2, 3, 4, 5, 8, 16]),
    st.binary(min_size=16, max_size=16),
)
def test_accesses_of_any_size_and_place_are_defined(
    bench: Bench, offset: int, size: int, data: bytes
) -> None:
    """Reading and writing any bytes of BAR0 raises nothing, and the controller can be enabled after."""
    bench.device.reset()
    bench.bus_master(True)
    size = min(size, 0x4000 - offset)
    bench.device.region_write(0, offset, data[:size])
    bench.settle()
    assert len(bench.device.region_read(0, offset, size)) == size
    bench.bar.write32(CC, 0)
    assert bench.driver.enable().status == READY
    assert ended(bench.driver.identify(Cns.CONTROLLER)) == Status.SUCCESS


@pytest.mark.point("R12")
def test_doorbells_read_as_zero(driver: Driver) -> None:
    driver.identify(Cns.CONTROLLER)
    assert driver.bar.read32(0x1000) == driver.bar.read32(0x1004) == 0


@pytest.mark.point("R13")
def test_a_subsystem_reset_needs_the_key_and_leaves_its_mark(driver: Driver) -> None:
    bar = driver.bar
    bar.write32(NSSR, NSSR_KEY ^ 1)
    assert driver.status == READY
    bar.write32(NSSR, NSSR_KEY)
    assert driver.status == 1 << 4, "NSSRO"
    assert bar.read32(CC) == bar.read32(AQA) == bar.read64(ASQ) == bar.read32(NSSR) == 0
    assert driver.enable().status == READY | 1 << 4
    bar.write32(CSTS, 1 << 4)
    assert driver.status == READY
    assert ended(driver.identify(Cns.CONTROLLER)) == Status.SUCCESS


@pytest.mark.point("R14", "S06")
@pytest.mark.parametrize("notification", [1, 2])
def test_shutdown_passes_through_its_stages_and_ends_processing(
    bench: Bench, driver: Driver, notification: int
) -> None:
    bench.bar.write32(CC, CC_ENABLE | notification << 14)
    assert driver.status == READY | 1 << 2
    bench.settle()
    assert driver.status == READY | 2 << 2
    driver.admin.submit(Command(AdminOpcode.IDENTIFY, prp1=driver.data, cdw10=1))
    driver.admin.ring()
    bench.settle()
    assert driver.admin.poll() == []
    bench.bar.write32(CC, CC_ENABLE)
    assert driver.status == READY | 2 << 2, "clearing SHN starts nothing"
    driver.disable()
    assert driver.status == 0
    assert driver.enable().status == READY
    assert ended(driver.identify(Cns.CONTROLLER)) == Status.SUCCESS


@pytest.mark.point("R14")
def test_a_controller_that_is_off_shuts_down_at_once(bench: Bench) -> None:
    bench.bar.write32(CC, 1 << 14)
    assert bench.driver.status == 2 << 2
    assert bench.driver.enable().status == READY


@pytest.mark.point("R14")
def test_a_reset_overtakes_a_shutdown(bench: Bench, driver: Driver) -> None:
    bench.bar.write32(CC, CC_ENABLE | 1 << 14)
    driver.enable()
    bench.settle()
    assert driver.status == READY
