"""A scripted server: a function that hears and says bytes, at the other end of a client's socket."""

import os
import socket
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import raw
from tests.raw import Message, RawPeer

Script = Callable[[RawPeer], None]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory whose path is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="ob", dir="/tmp") as name:
        yield Path(name)


class Stage:
    """Plays scripts, each to the first client that connects to its path."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._threads: list[threading.Thread] = []
        self._errors: list[BaseException] = []

    def __call__(self, script: Script) -> Path:
        """Begins to listen; the path."""
        path = self._folder / f"{len(self._threads)}.sock"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(os.fspath(path))
        listener.listen()
        listener.settimeout(raw.DEADLINE)

        def run() -> None:
            try:
                with listener, RawPeer(listener.accept()[0]) as peer:
                    script(peer)
            except BaseException as error:
                self._errors.append(error)

        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()
        return path

    def end(self) -> None:
        """Waits for every script to end; what one has raised fails the test."""
        for thread in self._threads:
            thread.join()
        while self._errors:
            raise self._errors.pop()


@pytest.fixture
def play(folder: Path) -> Iterator[Stage]:
    stage = Stage(folder)
    yield stage
    stage.end()


def greet(peer: RawPeer, text: bytes = raw.SERVER_JSON, *, minor: int = 0, regions: int = 9) -> Message:
    """Answers VERSION and DEVICE_GET_INFO; the VERSION command."""
    hello = peer.receive()
    peer.send(raw.reply(hello, struct.pack("=HH", 0, minor) + text))
    peer.send(raw.reply(peer.receive(), struct.pack("=IIII", 16, 3, regions, 5)))
    return hello


def wait_for_end(peer: RawPeer) -> None:
    """Until the client has closed."""
    try:
        while peer.socket.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass


def answer(peer: RawPeer, command: Message, memory: bytes, size: int = 0x1000, argsz: int = 32) -> None:
    """What a plain server answers: each region has `size` bytes and no descriptor, and reads as `memory`."""
    for fd in command.fds:
        os.close(fd)
    if command.flags & raw.NO_REPLY:
        return
    match command.command:
        case raw.REGION_INFO:
            index = struct.unpack_from("=I", command.payload, 8)[0]
            peer.send(raw.reply(command, struct.pack("=IIIIQQ", argsz, 3, index, 0, size, 0)))
        case raw.REGION_READ:
            offset, _, count = struct.unpack("=QII", command.payload)
            peer.send(raw.reply(command, command.payload + memory[offset : offset + count]))
        case raw.IRQ_INFO:
            index = struct.unpack_from("=I", command.payload, 8)[0]
            peer.send(raw.reply(command, struct.pack("=IIII", 16, 1, index, 4)))
        case raw.SET_IRQS | raw.RESET | raw.DMA_MAP:
            peer.send(raw.reply(command))
        case _:
            peer.send(raw.reply(command, command.payload[:24]))


def serve_plainly(peer: RawPeer, memory: bytes) -> list[Message]:
    """Answers everything plainly until the client leaves; the commands."""
    commands: list[Message] = []
    try:
        while True:
            commands.append(peer.receive())
            answer(peer, commands[-1], memory)
    except (EOFError, ConnectionError):
        return commands
