"""`replay`: a recorded conversation as a device's regression test, without the machine it came from."""

import os
from collections.abc import Iterable, Sequence

from outboard.device import DeviceContract
from outboard.testing.client import InMemoryTransport
from outboard.trace.capture import Captured, read_capture
from outboard.trace.replay import PATIENCE, Difference, Player, Volatile, connections


def replay(
    capture: str | os.PathLike[str] | Iterable[Captured],
    device: DeviceContract,
    *,
    ignore: Sequence[Volatile] = (),
    ignore_dma: bool = False,
    patience: float = PATIENCE,
) -> list[Difference]:
    """Says to `device`, in memory, what a recorded client said; where its answers differ, in order.

    ::

        def test_linux_boots_as_it_did():
            assert replay("tests/boot.pcapng", MyDevice()) == []

    The device has to be as fresh as the recorded one was. Each connection of the capture is played after the
    other. ``ignore``, ``ignore_dma`` and ``patience`` as in `Player`. What the device's own code raises is
    raised here.
    """
    differences: list[Difference] = []
    for messages in connections(read_capture(capture) if isinstance(capture, str | os.PathLike) else capture):
        transport = InMemoryTransport(device)
        player = Player(messages, transport, ignore=ignore, ignore_dma=ignore_dma, patience=patience)
        transport.serve_client = player.serve
        differences += player.play()
        transport.raise_device_error()
    return differences
