"""A child process that never outlives us: Linux kills it when we are gone, however we went (prctl(2))."""

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# The death signal is sent when the *thread* that started the child ends, so one thread, which lives
# as long as the process, starts them all.
_starter = ThreadPoolExecutor(1, thread_name_prefix="outboard-starter")

# Run before the program itself, in its process: preexec_fn would fork with our threads' locks held.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the process that asked for this one is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


def start(command: Sequence[str], *, log: Path, pass_fds: Sequence[int] = ()) -> "subprocess.Popen[bytes]":
    """Start ``command``, its first word an absolute path; what it prints goes to the file ``log``.

    The descriptors ``pass_fds`` keep their numbers in the child and stay open in the caller.
    """
    wrapper = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid())]

    def launch() -> "subprocess.Popen[bytes]":
        with log.open("ab") as output:
            return subprocess.Popen(
                [*wrapper, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=tuple(pass_fds),
            )

    return _starter.submit(launch).result()
