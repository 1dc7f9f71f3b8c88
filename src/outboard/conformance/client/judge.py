"""Judging a client: a connection for each scenario, and the points read off what was heard on it."""

import os
import shlex
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from outboard.conformance.client.device import Heard
from outboard.conformance.client.requests import POINTS
from outboard.conformance.client.scenarios import SCENARIOS
from outboard.conformance.peer import Peer
from outboard.conformance.points import NotApplicable, Outcome, Point, Profile, Verdict, Wrong, select
from outboard.conformance.report import Report, subject
from outboard.errors import SetupError


def judge_client(
    path: str | os.PathLike[str],
    *,
    command: str | None = None,
    start: Callable[[str], object] = lambda path: None,
    only: Sequence[str] = (),
    profile: Profile | str | None = None,
    settle: float = 1.0,
    patience: float = 60.0,
    announce: Callable[[str], None] = lambda scenario: None,
    progress: Callable[[Verdict], None] = lambda verdict: None,
) -> Report:
    """Judge the client that connects to ``path``, once for each scenario.

    ``command`` starts it (``{socket}`` is replaced by the path) and is ended after each connection; ``start``
    is a function that does the same. With neither, somebody else starts it, again and again, within
    ``patience`` seconds; ``announce`` tells for which scenario. A client that says nothing for ``settle``
    seconds has come to rest. Raises KeyError for an id that is no point, SetupError if ``command`` cannot be
    run.
    """
    points = select(POINTS, only, None if profile is None else Profile(profile))
    needed = {point.scenario for point in points}
    heard: dict[str, Heard | str] = {}
    missing = ""
    listener = _listen(Path(path))
    try:
        for script in SCENARIOS:
            if script.name in needed and not missing:
                announce(script.name)
                process = _run(command, os.fspath(path))
                start(os.fspath(path))
                try:
                    connection = _accept(listener, patience, process)
                    if connection is None:
                        missing = f"no client came for the scenario '{script.name}'"
                    else:
                        heard[script.name] = script(Peer(connection, settle), settle).run()
                        connection.close()
                finally:
                    _end(process)
    finally:
        listener.close()
        Path(path).unlink(missing_ok=True)
    report = Report(subject(command, path))
    for point in points:
        report.verdicts.append(_judge(point, heard, missing))
        progress(report.verdicts[-1])
    return report


def client_points() -> tuple[Point[Heard], ...]:
    """The points a client is judged by."""
    return POINTS


def _judge(point: Point[Heard], heard: dict[str, Heard | str], missing: str) -> Verdict:
    if point.judge is None:
        return Verdict(point, Outcome.NOT_APPLICABLE, reason=point.reason)
    connection = heard.get(point.scenario)
    if not isinstance(connection, Heard) or not connection.messages:
        return Verdict(point, Outcome.NOT_APPLICABLE, reason=missing or "the client said nothing")
    try:
        point.judge(connection)
    except NotApplicable as error:
        return Verdict(point, Outcome.NOT_APPLICABLE, reason=str(error))
    except Wrong as error:
        return Verdict(point, Outcome.FAIL, error.expected, error.saw)
    return Verdict(point, Outcome.PASS)


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with suppress(FileNotFoundError):
            if path.is_socket():
                path.unlink()
        listener.bind(os.fspath(path))
        listener.listen()
    except OSError as error:
        listener.close()
        raise SetupError(f"cannot listen on {path}: {error.strerror}") from error
    return listener


def _accept(
    listener: socket.socket, patience: float, process: "subprocess.Popen[bytes] | None"
) -> socket.socket | None:
    """The client's connection, or None if none came: in time, or before its process ended."""
    end = time.monotonic() + patience
    listener.settimeout(0.1)
    while time.monotonic() < end:
        ended = process is not None and process.poll() is not None
        with suppress(TimeoutError):
            return listener.accept()[0]
        if ended:
            return None
    return None


def _run(command: str | None, path: str) -> "subprocess.Popen[bytes] | None":
    if command is None:
        return None
    words = [word.replace("{socket}", path) for word in shlex.split(command)]
    silent = subprocess.DEVNULL
    try:
        return subprocess.Popen(words, stdin=silent, stdout=silent, stderr=silent)
    except OSError as error:
        raise SetupError(f"the client's command cannot be run: {words[0]}: {error.strerror}") from error


def _end(process: "subprocess.Popen[bytes] | None") -> None:
    if process is not None:
        process.terminate()
        try:
            process.wait(2.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
