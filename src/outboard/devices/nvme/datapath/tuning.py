"""How the pollers of a data plane wait: the trade of processor time for latency."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tuning:
    """How the pollers wait; all times are microseconds.

    ``pollers``: threads, over which the queues are spread; 0: none. ``native``: compiled or not (None: if
    possible). ``spin``: how long a poller looks for more before it sleeps, at most. ``nap`` and
    ``longest_nap``: the sleeps between looks at doorbells that the host has mapped. ``grace``: how long a
    host that was interrupted may take before it is interrupted again.
    """

    pollers: int = 0
    native: bool | None = None
    spin: int = 100
    nap: int = 50
    longest_nap: int = 2_000
    grace: int = 500
