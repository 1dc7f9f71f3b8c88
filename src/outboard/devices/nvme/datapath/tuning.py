"""How the pollers of a data plane wait: the trade of processor time for latency."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tuning:
    """How the pollers wait; all times are microseconds.

    ``pollers``: threads, over which the queues are spread; 0: none. ``native``: compiled or not (None: if
    possible). ``spin``: how long a poller looks for more before it naps, at most. ``nap`` and
    ``longest_nap``: the naps between looks after that. ``doze``: how long it goes on so before it has the
    host ring, and sleeps. A host that has mapped the doorbells does not ring, so there it naps for ever,
    up to ``longest_poll`` at a time. ``grace``: how long a host that was interrupted may take before it is
    interrupted again.
    """

    pollers: int = 0
    native: bool | None = None
    spin: int = 300
    nap: int = 20
    longest_nap: int = 200
    doze: int = 3_000
    longest_poll: int = 2_000
    grace: int = 500
