"""Fuzzers: bytes that choose what a peer does, and what has to hold whatever it does.

* `codec`: both ends of the protocol, without a socket
* `server`: devices behind a `Session`: messages, descriptors, answers to their own commands
* `client`: a `Client` and a server that answers anything
* `proxy`: a proxy between two peers that say anything
* `commands`: an NVMe subsystem with two controllers, and commands that are wrong in every way

A target is a module with a function ``run(data)`` that raises when its property, the first sentence of its
docstring, does not hold. ``data`` is read by `choices`: what a fuzzer changes are decisions, so that most
messages are nearly right. `make fuzz` has atheris look for trouble; `tests/fuzz` runs the inputs that are
kept in ``corpus``, which need no atheris.
"""

import importlib
from collections.abc import Callable

TARGETS = ("codec", "server", "client", "proxy", "commands")


def target_named(name: str) -> Callable[[bytes], None]:
    """The property of a target."""
    run: Callable[[bytes], None] = importlib.import_module(f"fuzz.{name}").run
    return run
