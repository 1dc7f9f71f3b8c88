"""Broken messages to a server that takes its client for each of those it knows, and over a twin socket."""

import os
import socket
from collections.abc import Iterator, Sequence

import pytest

from outboard.server import Session
from outboard.server.profiles import PROFILES, Profile
from tests import raw
from tests.server.test_dma import ADDRESS, BASE, COUNT, NOW, PAGE, READ, WRITE
from tests.server.test_fuzz import Fuzzer, mutated, quiet
from tests.server.test_twin import ASKS

__all__ = ["quiet"]


TRANSFER = (
    raw.write(raw.CONFIG, 4, b"\x04\x00")
    + raw.dma_map(BASE, PAGE)
    + raw.write(0, ADDRESS, BASE.to_bytes(8, "little"))
    + raw.write(0, COUNT, PAGE.to_bytes(4, "little"))
)


class ProfileFuzzer(Fuzzer):
    """Takes every client for one kind of client."""

    def __init__(self, seed: int, profile: Profile | None, hello: bytes) -> None:
        super().__init__(seed)
        self.profile = profile
        self.hello = hello

    def open_session(self) -> Session:
        if self.session is None:
            self.sessions += 1
            self.session = Session(self.gadget, self.loop, self.receive, self.pump, profile=self.profile)
            self.session.feed(self.hello)
        return self.session


class TwinFuzzer(ProfileFuzzer):
    """Has a twin socket, and sends on it what may be an answer or anything else."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, None, raw.version(text=ASKS))
        self.twin: socket.socket | None = None
        self.transfers = 0

    def chunks(self, data: bytes) -> Iterator[bytes]:
        """Among the messages is now and then one that makes the gadget reach memory, at once or soon."""
        if self.random.random() < 0.2:
            data = TRANSFER + raw.write(0, self.random.choice((NOW, READ, WRITE)), bytes(4)) + data
        return super().chunks(data)

    def receive(self, data: bytes, fds: Sequence[int]) -> bool:
        super().receive(data, fds)
        if raw.HEADER.unpack_from(data)[1] == raw.VERSION and fds:
            self.twin = socket.socket(fileno=os.dup(fds[0]))
            self.twin.setblocking(False)
        return True

    def pump(self, seconds: float) -> None:
        assert self.session is not None
        assert self.session.twin is not None
        twin = self.twin
        if twin is None or self.random.random() < 0.02:
            self.session.closed = True
            return
        try:
            commands = twin.recv(1 << 21)
        except OSError:
            commands = b""
        if len(commands) >= 32 and raw.HEADER.unpack_from(commands)[3] == 0:
            self.transfers += 1
            self.session.twin.work()
            self.answer(twin, commands)
        self.session.twin.work()

    def answer(self, twin: socket.socket, command: bytes) -> None:
        random = self.random
        id, kind, _, _, _ = raw.HEADER.unpack_from(command)
        count = int.from_bytes(command[24:32], "little") if kind == raw.DMA_READ else 0
        answer = bytearray(raw.message(kind, command[16:32] + bytes(count), id=id, flags=raw.REPLY))
        if random.random() < 0.3:
            answer[random.randrange(min(64, len(answer)))] ^= 1 << random.randrange(8)
        for data in (mutated(random), answer) if random.random() < 0.3 else (answer,):
            try:
                twin.sendall(data)
            except OSError:  # full, or given up
                return

    def end_session(self) -> None:
        super().end_session()
        if self.twin is not None:
            self.twin.close()
            self.twin = None


def fuzz(fuzzer: Fuzzer, messages: int) -> None:
    """Every answer is well formed, no exception leaves the session, no descriptor stays."""
    before = raw.open_descriptors()
    fuzzer.run(messages)
    fuzzer.end_session()
    assert raw.open_descriptors() == before
    fuzzer.close()
    assert fuzzer.answered > 100


@pytest.mark.point("P19", "P24")
@pytest.mark.parametrize("name", PROFILES)
def test_broken_messages_are_answered_by_the_rules_whoever_they_come_from(name: str) -> None:
    fuzz(ProfileFuzzer(len(name), PROFILES[name], raw.version()), 1000)


@pytest.mark.point("P24", "P35")
@pytest.mark.parametrize("seed", range(3))
def test_broken_messages_beside_a_twin_socket_and_on_it_are_answered_by_the_rules(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outboard.server.remote_dma.REPLY_DEADLINE", 0.005)
    fuzzer = TwinFuzzer(seed)
    fuzz(fuzzer, 1500)
    assert fuzzer.transfers > 10


@pytest.mark.soak
@pytest.mark.point("P24", "P35")
def test_a_hundred_thousand_broken_messages_of_each_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outboard.server.remote_dma.REPLY_DEADLINE", 0.005)
    for profile in PROFILES.values():
        fuzz(ProfileFuzzer(1, profile, raw.version()), 100_000)
    fuzz(TwinFuzzer(1), 100_000)
