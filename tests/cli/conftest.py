"""Running the program as its users do, in processes of its own."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

PROGRAM = Path(sys.executable).with_name("outboard")
EDU = Path(__file__).parents[2] / "examples" / "01_edu.py"

Outboard = Callable[..., "subprocess.CompletedProcess[str]"]
Serving = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def outboard() -> Outboard:
    """``outboard("doctor", **environment)``: run a command to its end."""

    def run(*arguments: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [PROGRAM, *arguments],
            env=os.environ | {"COLUMNS": "100"} | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    return run


@pytest.fixture
def serving() -> Iterator[Serving]:
    """``serving(socket, "serve", ...)``: run a command until the test's end; it listens on ``socket``."""
    with ExitStack() as started:

        def start(socket: Path, *arguments: str | Path) -> "subprocess.Popen[str]":
            command = [PROGRAM, *arguments, "--socket", socket]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            started.enter_context(process)
            started.callback(process.kill)
            # The first line is printed when it listens.
            assert process.stdout is not None
            assert process.stdout.readline(), process.communicate()
            return process

        yield start
