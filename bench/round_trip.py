"""How long does a REGION_READ take, against the least a Python server could take?

The least is an echo: a process that waits for its socket, receives and sends back the same number of bytes.
Both are measured raw over a socket pair, the server in a process of its own, in turns. All run on one core,
so that the work is measured and not how deep an idle core sleeps (`--spread`: the scheduler's choice). With
`--proxy` a third one is the same read through a proxy that stands between, and a fourth through one that
also writes a capture. Run: `python bench/round_trip.py`.
"""

import argparse
import json
import os
import select
import signal
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from outboard import Bar, Device
from outboard.protocol import ClientConnection
from outboard.protocol.messages import RegionRead
from outboard.server import Server
from outboard.trace import CaptureWriter
from outboard.trace.proxy import Proxy


class Registers(Device):
    """The device asked: one plain register."""

    vendor_id, device_id, class_code = 0x1234, 0x0001, 0xFF0000
    mmio = Bar(0, size=0x1000)
    control = mmio.reg(0x10, reset=0xCAFE)


def echo(connection: socket.socket) -> None:
    """The least a server does: wait, receive (with room for descriptors), send."""
    waiting = select.epoll()
    waiting.register(connection, select.EPOLLIN)
    room = socket.CMSG_SPACE(253 * 4)
    while True:
        waiting.poll()
        data, _, _, _ = connection.recvmsg(64 << 10, room)
        if not data:
            return
        connection.sendmsg([data + b"\0\0\0\0"])


def serve(connection: socket.socket) -> None:
    """Our server, on an inherited socket."""
    with Server(Registers(), fd=connection.detach()) as server:
        server.serve_forever()


def behind_proxy(folder: Path, *, captured: bool) -> tuple[socket.socket, list[int]]:
    """The device behind a proxy, each in a process of its own; a connection to the proxy, the processes."""
    server_path, proxy_path = folder / f"server{captured}", folder / f"proxy{captured}"
    server = Server(Registers(), server_path)
    file = (folder / "capture").open("wb") if captured else None
    proxy = Proxy(proxy_path, server_path, capture=CaptureWriter(file) if file else None)
    children = []
    for serving in (server, proxy):
        if (child := os.fork()) == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            serving.serve_forever()
            os._exit(0)
        children.append(child)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.fspath(proxy_path))
    return connection, children


def in_child(server: Callable[[socket.socket], None]) -> tuple[socket.socket, int]:
    """`server` in a process of its own; our end of the socket pair, and the process."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        server(theirs)
        os._exit(0)
    theirs.close()
    return ours, child


def open_and_read(connection: socket.socket) -> bytes:
    """Agrees on a version; the message that reads the register."""
    protocol = ClientConnection()
    connection.send(protocol.version_command()[1])
    protocol.feed(connection.recv(4096))
    return protocol.command(RegionRead(offset=0x10, region=0, count=4))[1]


def microseconds(connection: socket.socket, message: bytes, rounds: int) -> float:
    """One round trip of `message`, on average over `rounds`."""
    started = time.perf_counter()
    for _ in range(rounds):
        connection.send(message)
        connection.recv(4096)
    return (time.perf_counter() - started) / rounds * 1e6


def main() -> None:
    """Measures and prints."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=20_000, help="round trips a turn")
    arguments.add_argument("--turns", type=int, default=9, help="turns of each; medians are printed")
    arguments.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    arguments.add_argument("--spread", action="store_true", help="let the scheduler choose the cores")
    arguments.add_argument("--proxy", action="store_true", help="measure it through a proxy too")
    options = arguments.parse_args()
    if not options.spread:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

    device, device_process = in_child(serve)
    echoing, echo_process = in_child(echo)
    message = open_and_read(device)

    pairs = []
    for _ in range(options.turns):
        pairs.append(
            (microseconds(device, message, options.rounds), microseconds(echoing, message, options.rounds))
        )
    result = {
        "region_read_us": round(statistics.median(ours for ours, _ in pairs), 2),
        "echo_us": round(statistics.median(theirs for _, theirs in pairs), 2),
        "ratio": round(statistics.median(ours / theirs for ours, theirs in pairs), 3),
    }
    if options.proxy:
        with tempfile.TemporaryDirectory() as folder:
            for name, captured in (("proxy_us", False), ("capture_us", True)):
                proxied, processes = behind_proxy(Path(folder), captured=captured)
                read = open_and_read(proxied)
                turns = [microseconds(proxied, read, options.rounds) for _ in range(options.turns)]
                result[name] = round(statistics.median(turns), 2)
                proxied.close()
                for process in processes:
                    os.kill(process, signal.SIGTERM)
                    os.waitpid(process, 0)
    device.close()
    echoing.close()
    for process in (device_process, echo_process):
        os.waitpid(process, 0)
    if options.json:
        print(json.dumps(result))
    else:
        print(f"REGION_READ {result['region_read_us']:8.2f} us a round trip")
        print(f"echo        {result['echo_us']:8.2f} us")
        print(f"ratio       {result['ratio']:8.3f} (median of {options.turns} pairs; at most 1.3 is wanted)")
        if options.proxy:
            print(f"proxied     {result['proxy_us']:8.2f} us")
            print(f"captured    {result['capture_us']:8.2f} us")


if __name__ == "__main__":
    main()
