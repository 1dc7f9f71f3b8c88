"""`outboard nvme` and `outboard bench` as processes of their own, each on its processor."""

import json
import os
import signal
import socket as sockets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.cores import DEVICE_CORE, DRIVER_CORE, run_on

OUTBOARD = [sys.executable, "-c", "from outboard.cli import main; main()"]
LARGEST = 128 << 10
"""Bytes of the commands that fill a disk."""

PATIENCE = 120.0
"""Seconds for a server to listen: the first time it compiles its data plane. And for a client to end."""


LOOK = 0.002
"""Seconds between two attempts to connect."""


def end_servers_when_killed() -> None:
    """From now on a plain kill ends a program as Ctrl-C does: with the servers it started."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def start(
    *arguments: str, core: int, cache: Path | None = None, capture: bool = False
) -> subprocess.Popen[str]:
    """Start an `outboard` command on a processor; its output goes to pipes, or nowhere."""
    environment = {**os.environ, **({"OUTBOARD_CACHE": str(cache)} if cache else {})}
    return subprocess.Popen(
        [*OUTBOARD, *arguments],
        stdout=subprocess.PIPE if capture else subprocess.DEVNULL,
        stderr=subprocess.PIPE if capture else subprocess.DEVNULL,
        text=True,
        env=environment,
        preexec_fn=lambda: run_on(core),
    )


@contextmanager
def serving(socket: Path, *namespaces: str, more: tuple[str, ...] = ()) -> Iterator[int]:
    """A server of these namespaces that is polled through mapped doorbells; its process id."""
    arguments = ["nvme", "--socket", str(socket), "--doorbells", "mmap", *more]
    for namespace in namespaces:
        arguments += ["--namespace", namespace]
    process = start(*arguments, core=DEVICE_CORE)
    try:
        wait_until_listening(socket, process)
        yield process.pid
    finally:
        end(process)


def wait_until_listening(path: Path, server: "subprocess.Popen[str]") -> None:
    """Return when somebody accepts a connection. Raises RuntimeError if the server ends instead."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and server.poll() is None:
        with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as connection:
            try:
                connection.connect(str(path))
            except OSError:
                time.sleep(LOOK)
            else:
                return
    raise RuntimeError(f"outboard nvme does not listen on {path}")


def end(process: "subprocess.Popen[str]") -> None:
    """End a server, politely at first."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def start_bench(socket: Path, seconds: float, **options: Any) -> "subprocess.Popen[str]":
    """Start `outboard bench` on the driver's processor."""
    arguments = ["bench", str(socket), "--json", "--seconds", str(seconds)]
    for name, value in options.items():
        arguments += [f"--{name.replace('_', '-')}", str(value)]
    return start(*arguments, core=DRIVER_CORE, capture=True)


def result_of(process: "subprocess.Popen[str]", seconds: float) -> dict[str, Any]:
    """What a started `outboard bench` found. Raises RuntimeError if it failed, or a command did."""
    try:
        output, errors = process.communicate(timeout=seconds + PATIENCE)
    finally:
        end(process)
    if process.returncode:
        raise RuntimeError(f"outboard bench ended with status {process.returncode}: {errors or output}")
    found: dict[str, Any] = json.loads(output)
    return found


def bench(socket: Path, seconds: float, **options: Any) -> dict[str, Any]:
    """What `outboard bench` finds."""
    return result_of(start_bench(socket, seconds, **options), seconds)


def fill(socket: Path, *, size: int = 256 << 20, nsid: int = 1) -> None:
    """Write a RAM disk once: what was never written is not memory yet, and read faster than any."""
    written = 0
    while written < size // LARGEST:
        written += bench(socket, 0.25, rw="write", bs=LARGEST, qd=8, warm_up=0, nsid=nsid)["operations"]
