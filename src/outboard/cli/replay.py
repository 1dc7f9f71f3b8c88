"""``outboard replay``: what a recorded client said, said again to a fresh server."""

from pathlib import Path

from outboard.client.transport import SocketTransport
from outboard.errors import SetupError
from outboard.trace.capture import read_capture
from outboard.trace.fault_spec import parse_range, parse_region
from outboard.trace.replay import PATIENCE, Difference, Player, Volatile, connections

DIFFERENT = 1


def replay(
    capture: Path,
    socket: Path,
    /,
    *,
    ignore: list[str] | None = None,
    ignore_dma: bool = False,
    patience: float = PATIENCE,
) -> int:
    """Say again what a recorded client said, and compare the answers.

    The server has to be as fresh as the recorded one was. Guest memory that was shared with it is
    not in the capture: a device finds zeros there. A register that was polled may take more or
    fewer reads.

    Prints each difference, and exits with status 1 if there is one.

    **Examples**

    ```
    outboard replay boot.pcapng /tmp/edu.sock
    outboard replay boot.pcapng /tmp/edu.sock --ignore BAR0:0x100+8
    ```

    Parameters
    ----------
    capture
        What `outboard proxy --record` has written.
    socket
        The server's UNIX socket.
    ignore
        REGION:OFFSET+SIZE: do not compare these bytes, as of a clock; may be given several times.
    ignore_dma
        Answer what the server asks of guest memory, but do not compare it: a device may bundle
        that as time allows.
    patience
        Seconds a register has to show what it showed in the recording.
    """
    volatile = [parse_volatile(text) for text in ignore or []]
    differences: list[Difference] = []
    count = 0
    for messages in connections(read_capture(capture)):
        count += len(messages)
        transport = SocketTransport.connect(socket)
        player = Player(messages, transport, ignore=volatile, ignore_dma=ignore_dma, patience=patience)
        differences += player.play()
    for difference in differences:
        print(difference)
    print(f"{count} messages replayed, {len(differences) or 'no'} difference{'s' * (len(differences) != 1)}")
    return DIFFERENT if differences else 0


def parse_volatile(text: str) -> Volatile:
    """The bytes that ``REGION:OFFSET+SIZE`` names. Raises SetupError.

    >>> parse_volatile("bar0:0x10+4")
    Volatile(region=0, offset=range(16, 20))
    """
    region, _, offset = text.partition(":")
    try:
        return Volatile(parse_region(region), parse_range(offset))
    except ValueError:
        raise SetupError(f"{text!r} names no bytes of a region: write BAR0:0x10+4") from None
