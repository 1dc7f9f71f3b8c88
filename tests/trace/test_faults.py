"""What a proxy breaks on purpose: which messages, how, and that a seed repeats it."""

import errno
import os
import select
import struct
import time
from pathlib import Path

import pytest

from outboard import Bar, Client, Device, Msi, Server
from outboard.errors import ConnectionLost, PeerTimeout, RemoteError, SetupError
from outboard.protocol import Direction
from outboard.protocol.messages import IrqIndex
from outboard.trace.capture import Captured
from outboard.trace.fault_spec import parse_fault
from outboard.trace.faults import Fate, Faults, Passing
from outboard.trace.interrupts import ASSIGN
from outboard.trace.proxy import Proxy
from tests import raw
from tests.trace.conftest import Ends

READ, READ_BAR1 = raw.read(0, 0x10, 4), raw.read(1, 0x10, 4)
ANSWER = raw.message(raw.REGION_READ, struct.pack("=QIII", 0x10, 0, 4, 0xCAFE), flags=raw.REPLY)


def fates(spec: str, *messages: bytes, seed: str = "0", seconds: float = 0.0) -> list[Fate]:
    """What one fault does to messages: commands of the client, replies of the server."""
    faults = Faults([parse_fault(spec)], seed)
    return [faults.judge(passing(message), seconds) for message in messages]


def passing(message: bytes) -> Passing:
    is_reply = message[8] & raw.REPLY
    return Passing(message, Direction.TO_CLIENT if is_reply else Direction.TO_SERVER)


def met(spec: str, *messages: bytes, seed: str = "0", seconds: float = 0.0) -> list[bool]:
    """Which messages one fault meets."""
    return [bool(fate.remark) for fate in fates(spec, *messages, seed=seed, seconds=seconds)]


@pytest.mark.parametrize(
    ("conditions", "wanted"),
    [
        ("command=REGION_READ", [True, True, False, False]),
        ("region=bar1", [False, True, False, False]),
        ("region=0", [True, False, False, False]),
        ("offset=0x12", [True, True, False, False]),
        ("offset=0x14+4", [False, False, False, False]),
        ("offset=0xc+5", [True, True, False, False]),
        ("direction=to-client", [False, False, False, True]),
        ("direction=to-server", [True, True, True, False]),
    ],
)
def test_a_fault_meets_what_fulfils_its_conditions(conditions: str, wanted: list[bool]) -> None:
    assert met(f"delay:ms=1,{conditions}", READ, READ_BAR1, raw.reset(), ANSWER) == wanted


def test_a_fault_without_a_direction_meets_commands_and_a_flip_replies() -> None:
    assert met("delay:ms=1", READ, ANSWER) == [True, False]
    assert met("flip", READ, ANSWER) == [False, True]


def test_the_nth_and_every_nth_count_what_matches() -> None:
    assert met("delay:ms=1,region=0,nth=2", READ, READ_BAR1, READ, READ) == [False, False, True, False]
    assert met("delay:ms=1,every=3", *[READ] * 6) == [False, False, True] * 2


def test_nothing_happens_before_its_time() -> None:
    assert met("delay:ms=1,after=2.5", READ, seconds=2.4) == [False]
    assert met("delay:ms=1,after=2.5", READ, seconds=2.5) == [True]


def test_the_same_seed_gives_the_same_faults_and_another_gives_others() -> None:
    spec = "delay:ms=1,probability=0.5"
    assert met(spec, *[READ] * 64) == met(spec, *[READ] * 64)
    assert met(spec, *[READ] * 64) != met(spec, *[READ] * 64, seed="1")
    assert 8 < sum(met(spec, *[READ] * 64)) < 56
    [first], [other] = fates("flip", ANSWER), fates("flip", ANSWER)
    assert first == other


def test_a_flip_changes_so_many_bits_of_the_data_and_nothing_else() -> None:
    [fate] = fates("flip:bits=5", ANSWER)
    assert fate.data is not None
    assert fate.data[:32] == ANSWER[:32]
    before, after = (int.from_bytes(data[32:]) for data in (ANSWER, fate.data))
    assert (before ^ after).bit_count() == 5


def test_a_flip_finds_nothing_in_a_message_without_payload() -> None:
    assert met("flip:direction=to-server", raw.reset()) == [False]


def test_an_error_answers_a_command_and_replaces_a_reply() -> None:
    [fate] = fates("error:errno=ENODEV", READ)
    assert fate.data is None
    assert fate.answer == raw.message(raw.REGION_READ, flags=raw.REPLY | raw.ERROR, error=errno.ENODEV)
    [fate] = fates("error:direction=to-client", ANSWER)
    assert fate.answer is None
    assert fate.data == raw.message(raw.REGION_READ, flags=raw.REPLY | raw.ERROR, error=errno.EIO)


def test_an_error_for_a_command_that_wants_no_reply_is_silence() -> None:
    [fate] = fates("error", raw.write(0, 0, b"1234", flags=raw.NO_REPLY))
    assert (fate.data, fate.answer) == (None, None)


def test_several_faults_add_up() -> None:
    faults = Faults(
        [
            parse_fault("delay:ms=5,direction=to-client"),
            parse_fault("flip"),
            parse_fault("delay:ms=10,direction=to-client"),
        ],
        "0",
    )
    fate = faults.judge(passing(ANSWER), 0)
    assert fate.delay == pytest.approx(0.015)
    assert fate.data != ANSWER
    assert fate.remark.startswith("delayed by 5 ms; flipped bit ")
    assert fate.remark.endswith("; delayed by 10 ms")


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("explode", "there is no fault 'explode': the kinds are delay"),
        ("delay:command=REGION_READ", "add ms=50"),
        ("delay:ms=-1", "a number from 0 on"),
        ("delay:ms=nan", "a number from 0 on"),
        ("error:errno=0", "from 1 to 4095"),
        ("error:command=REGION_REED", "no command has this name"),
        ("error:probability=2", "from 0 to 1"),
        ("error:nth=0", "begins with 1"),
        ("error:nth=1,nth=2", "nth is twice"),
        ("flip:ms=5", "flip takes bits, command"),
        ("drop-interrupt:region=0", "drop-interrupt takes index, vector"),
        ("error:offset=four", "invalid literal"),
    ],
)
def test_a_fault_that_cannot_be_is_refused_with_what_would_do(spec: str, sentence: str) -> None:
    with pytest.raises(SetupError) as refusal:
        parse_fault(spec)
    assert sentence in str(refusal.value)


class Lab(Device):
    """A register to read, and two vectors to signal."""

    vendor_id, device_id, class_code = 0x1234, 0x5678, 0xFF0000
    mmio = Bar(0, size=0x1000)
    msi = Msi(vectors=2)
    value = mmio.reg(0x10, reset=0xCAFE)
    ring = mmio.reg(0x14)

    @ring.on_write
    def signal(self, vector: int) -> None:
        self.msi[vector].trigger()


class Broken:
    """A client of `Lab` behind a proxy with faults; ``seen`` is what passed."""

    def __init__(self, folder: Path, *specs: str) -> None:
        self.seen: list[Captured] = []
        self.server = Server(Lab(), folder / "s").start()
        faults = [parse_fault(spec) for spec in specs]
        self.proxy = Proxy(folder / "c", folder / "s", faults=faults, observer=self.seen.append).start()

    def __enter__(self) -> "Broken":
        return self

    def __exit__(self, *_: object) -> None:
        self.proxy.close()
        self.server.close()

    def remarks(self) -> list[str]:
        self.proxy.close()  # a message is shown after it has gone on
        return [each.remark for each in self.seen if each.remark]


def test_a_delayed_message_holds_back_what_follows_it(folder: Path) -> None:
    with Broken(folder, "delay:command=REGION_WRITE,ms=100") as broken, Client(broken.proxy.path) as client:
        mmio = client.bar(0)
        started = time.monotonic()
        assert mmio.read32(0x10) == 0xCAFE
        assert time.monotonic() - started < 0.1
        mmio.write32(0x10, 1)
        assert time.monotonic() - started >= 0.1
        assert broken.remarks() == ["delayed by 100 ms"]


def test_messages_behind_a_delay_keep_their_order(ends: Ends) -> None:
    client, server = ends(faults=[parse_fault("delay:command=DEVICE_RESET,nth=1,ms=50")])
    for number in range(5):
        client.send(raw.reset(id=number))
        client.send(raw.read(0, number, 4, id=number))
    assert [server.receive().id for _ in range(10)] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_an_error_reaches_the_client_and_the_command_never_the_server(folder: Path) -> None:
    spec = "error:command=REGION_WRITE,region=bar0,offset=0x10,errno=ENODEV"
    with Broken(folder, spec) as broken, Client(broken.proxy.path) as client:
        with pytest.raises(RemoteError) as refusal:
            client.bar(0).write32(0x10, 1)
        assert refusal.value.errno == errno.ENODEV
        assert client.bar(0).read32(0x10) == 0xCAFE
        assert broken.remarks() == ["answered with ENODEV, not forwarded", "made by the proxy"]


def test_an_error_in_the_place_of_a_reply_lets_its_descriptors_go(ends: Ends) -> None:
    client, server = ends(faults=[parse_fault("error:direction=to-client")])
    client.send(raw.region_info(2))
    before = raw.open_descriptors()
    fd = raw.memory_file(4096)
    server.send(raw.reply(server.receive(), bytes(32)), [fd])
    os.close(fd)
    answer = client.receive()
    assert (answer.error, answer.fds, answer.size) == (errno.EIO, (), 16)
    client.send(raw.reset())
    server.receive()  # by now all that was sent before has been closed
    assert raw.open_descriptors() == before


def test_a_servers_command_can_fail_too(ends: Ends) -> None:
    client, server = ends(faults=[parse_fault("error:command=DMA_READ,errno=EFAULT")])
    read = raw.message(raw.DMA_READ, struct.pack("=QQ", 0x1000, 4))
    assert server.refused(read) == errno.EFAULT
    client.expect_silence()


def test_a_flipped_bit_reaches_the_client(folder: Path) -> None:
    with (
        Broken(folder, "flip:command=REGION_READ,region=bar0") as broken,
        Client(broken.proxy.path) as client,
    ):
        assert (client.bar(0).read32(0x10) ^ 0xCAFE).bit_count() == 1
        [remark] = broken.remarks()
        assert remark.startswith("flipped bit ")


def test_the_nth_message_cuts_both_ends_off_and_the_next_client_starts_anew(folder: Path) -> None:
    with Broken(folder, "disconnect:command=REGION_READ,region=bar0,nth=3") as broken:
        for _ in range(2):
            with Client(broken.proxy.path) as client:
                for _ in range(2):
                    assert client.bar(0).read32(0x10) == 0xCAFE
                with pytest.raises(ConnectionLost):
                    client.bar(0).read32(0x10)
        assert broken.remarks() == ["both ends cut off, not forwarded"] * 2


def test_a_time_cuts_both_ends_off(ends: Ends) -> None:
    client, server = ends(faults=[parse_fault("disconnect:at=0.1")])
    client.expect_closed()
    server.expect_closed()


def test_an_interrupt_is_dropped_and_the_next_one_comes(folder: Path) -> None:
    spec = "drop-interrupt:index=MSI,vector=1,nth=1"
    with Broken(folder, spec) as broken, Client(broken.proxy.path) as client:
        first, second = client.enable_msi(2)
        mmio = client.bar(0)
        mmio.write32(0x14, 1)
        mmio.write32(0x14, 0)
        assert first.wait() == 1
        with pytest.raises(PeerTimeout):
            second.wait(0.1)
        mmio.write32(0x14, 1)
        assert second.wait() == 1


def test_vectors_that_are_assigned_anew_or_taken_back_leave_no_descriptor(folder: Path) -> None:
    with Broken(folder, "drop-interrupt:probability=0") as broken, Client(broken.proxy.path) as client:
        client.enable_msi(2)
        before = raw.open_descriptors()
        for _ in range(20):
            client.enable_msi(2)
        client.config.read32(0)  # by now all that was sent before has been closed
        assert raw.open_descriptors() == before
        client.disable_interrupts(IrqIndex.MSI)
        interrupt = client.enable_msi(1)[0]
        client.bar(0).write32(0x14, 0)
        assert interrupt.wait() == 1


def test_a_vector_that_the_server_refuses_to_assign_anew_is_served_as_before(ends: Ends) -> None:
    client, server = ends(faults=[parse_fault("drop-interrupt:probability=0")])
    client.send(raw.reset())
    server.receive()
    before = raw.open_descriptors()

    def assign(error: int) -> tuple[int, int]:
        """Has the client assign an eventfd, which the server takes or refuses: the ends of both."""
        event = os.eventfd(0, os.EFD_NONBLOCK)
        client.send(raw.set_irqs(IrqIndex.MSI, ASSIGN), [event])
        asked = server.receive()
        flags = raw.REPLY | raw.ERROR if error else raw.REPLY
        server.send(raw.message(raw.SET_IRQS, flags=flags, id=asked.id, error=error))
        assert client.receive().error == error
        return event, asked.fds[0]

    def arrives(event: int) -> bool:
        return bool(select.select([event], [], [], 10)[0]) and os.eventfd_read(event) == 1

    first, signalled = assign(0)
    second, unwanted = assign(errno.EINVAL)
    os.eventfd_write(signalled, 1)
    assert arrives(first)
    third, anew = assign(0)
    os.eventfd_write(anew, 1)
    assert arrives(third)
    for fd in (first, second, third, signalled, unwanted, anew):
        os.close(fd)
    client.send(raw.reset())
    server.receive()  # by now all that was sent before has been closed
    assert raw.open_descriptors() == before + 2  # of one vector: the proxy's eventfd and the client's
