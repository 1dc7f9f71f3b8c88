"""`--socket-mode`, `--socket-owner`, `--allow-user`, and a log that cannot be flooded."""

import logging
import os
import signal
import stat
from pathlib import Path

import pytest

from outboard.cli.log import Throttle
from outboard.client import Client
from outboard.errors import ConnectionLost
from tests.cli.conftest import EDU, Outboard, Serving


def test_the_socket_has_the_mode_and_owner_asked_for_and_its_owner_is_served(
    serving: Serving, tmp_path: Path
) -> None:
    path = tmp_path / "edu.sock"
    me = (os.geteuid(), os.getegid())
    options = ["--socket-mode", "600", "--socket-owner", "{}:{}".format(*me), "--allow-user", str(me[0])]
    serving(path, "serve", EDU, *options)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (path.stat().st_uid, path.stat().st_gid) == me
    with Client(path) as client:
        assert client.config.read16(0) == 0x1234


@pytest.mark.parametrize("options", [["--allow-uid", "54321"], ["--allow-gid", "54321"]])
def test_a_client_that_is_not_allowed_is_told_nothing_and_named_in_the_log(
    serving: Serving, tmp_path: Path, options: list[str]
) -> None:
    path = tmp_path / "disk.sock"
    process = serving(path, "nvme", "--namespace", "ram:16M", "--pollers", "0", *options)
    with pytest.raises(ConnectionLost):
        Client(path)
    process.send_signal(signal.SIGTERM)
    _, printed = process.communicate(timeout=20)
    assert f"not allowed: process {os.getpid()} of user {os.geteuid()}" in printed


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--socket-mode", "rw-rw----"], "--socket-mode rw-rw----: write the permission bits in octal"),
        (["--socket-mode", "7777"], "0o7777 is no mode"),
        (["--socket-owner", "nobody-has-this-name"], "no user 'nobody-has-this-name'"),
    ],
)
def test_what_is_no_mode_or_owner_is_refused(
    outboard: Outboard, tmp_path: Path, options: list[str], sentence: str
) -> None:
    refused = outboard("serve", EDU, "--socket", tmp_path / "s", *options)
    assert refused.returncode == 1
    assert sentence in refused.stderr


def test_a_flood_of_mistakes_does_not_become_a_flood_of_lines() -> None:
    now = 0.0
    throttle = Throttle(most=3, seconds=10, clock=lambda: now)
    written: list[str] = []
    for number in range(1000):
        record = logging.LogRecord("outboard", logging.WARNING, "", 0, "mistake %d", (number,), None)
        if throttle.filter(record):
            written.append(record.getMessage())
        if number == 500:
            now = 11.0
    assert written[:3] == ["mistake 0", "mistake 1", "mistake 2"]
    assert written[3] == "(498 lines were left out: too many) mistake 501"
    assert written[4:] == ["mistake 502", "mistake 503"]
