"""DMA by message: guest memory that the client mapped without a descriptor.

vfio-user's DMA_READ and DMA_WRITE, the only commands a server sends. Three traps are kept here:

* QEMU's vCPU waits for our answer to a register access while it holds the lock its DMA service needs, so
  asking for memory from inside a register handler would deadlock until QEMU gives up. It is refused, with
  the sentence that says what to do. Only a client that asked for a twin socket can serve us meanwhile.
* QEMU 10.1 lays these messages out in its own way. A write of no bytes tells the two apart without harm: a
  peer that follows the specification echoes address and count, QEMU 10.1 answers with a bare header.
* QEMU (11.1 too) takes a short write to its socket for a whole one: of an answer that does not fit the
  socket's send buffer the rest is never sent, and the stream is out of step. So little is asked at once.
"""

import logging
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from outboard.errors import ConnectionLost, DmaError, DmaInHandler, PeerTimeout
from outboard.protocol import DmaLayout, ErrorReply, Message, Reply, ServerConnection
from outboard.protocol.messages import (
    DmaRead,
    DmaReadReply,
    DmaWrite,
    DmaWriteReply,
    Empty,
)

if TYPE_CHECKING:
    from outboard.server.session import Session
    from outboard.server.twin import Twin

log = logging.getLogger(__name__)

READ_STEP = 64 << 10
"""Bytes one DMA_READ asks for: such an answer fits Linux's default send buffer (208 KiB) easily."""
REPLY_DEADLINE = 5.0
"""Seconds a client has to answer a DMA message: what QEMU grants us the other way round."""


class MessageDma:
    """`RemoteMemory` over one client's connection.

    ``pump(seconds)`` lets input arrive and be handled for up to that long: other requests of the client are
    served while an answer is awaited, so neither side waits for the other. With a ``twin`` socket messages
    go over that, also from inside a handler; there nothing but their answers is awaited.
    """

    def __init__(
        self, session: "Session", connection: ServerConnection, pump: Callable[[float], None]
    ) -> None:
        self._session = session
        self._connection = connection
        self._pump = pump
        self.twin: Twin | None = None
        self._answers: dict[int, Reply | ErrorReply | None] = {}
        self._probed = False

    def read(self, address: int, count: int) -> bytes:
        """The `count` bytes at IOVA `address`, in messages no longer than the client takes.

        Raises DmaInHandler inside a register handler, DmaError when the client refuses, PeerTimeout and
        ConnectionLost.
        """
        self._prepare(address, count)
        parts = []
        for at, size in self._chunks(address, count, READ_STEP):
            body = self._ask(DmaRead(address=at, count=size), at, size)
            if not isinstance(body, DmaReadReply) or len(body.data) != size:
                raise DmaError(
                    f"the client answered a read of {size:#x} bytes at {at:#x} with another length",
                    address=at,
                    size=size,
                )
            parts.append(body.data)
        return b"".join(parts)

    def write(self, address: int, data: bytes) -> None:
        """Stores `data` at IOVA `address`; raises as `read` does."""
        self._prepare(address, len(data))
        for at, size in self._chunks(address, len(data), len(data)):
            piece = data[at - address : at - address + size]
            body = self._ask(DmaWrite(address=at, count=size, data=piece), at, size)
            if isinstance(body, DmaWriteReply) and body.count != size:
                raise DmaError(
                    f"the client has taken {body.count:#x} of {size:#x} bytes written at {at:#x}",
                    address=at,
                    size=size,
                )

    def deliver(self, reply: Reply | ErrorReply) -> bool:
        """Takes the reply if it is the one awaited."""
        if reply.message_id not in self._answers:
            return False
        self._answers[reply.message_id] = reply
        return True

    def _prepare(self, address: int, size: int) -> None:
        profile = self._session.profile
        if not profile.message_dma:
            raise DmaError(
                f"{size:#x} bytes at {address:#x} were mapped without a descriptor, and {profile.client}"
                " serves no DMA by message; give it shared memory",
                address=address,
                size=size,
            )
        if self._session.in_handler and self.twin is None:
            raise DmaInHandler(
                f"{size:#x} bytes at {address:#x} are reached by messages to the VMM, which now waits for"
                " us: transfer in self.call_soon(fn), or give the VMM shared memory",
                address=address,
                size=size,
            )
        if not self._probed and self.twin is None:
            self._connection.dma_layout = profile.dma_layout or self._found_layout(address)
            self._probed = True

    def _found_layout(self, address: int) -> DmaLayout:
        """The layout the client speaks, which its answer to a write of nothing tells."""
        try:
            body = self._ask(DmaWrite(address=address, count=0, data=b""), address, 0)
        except DmaError:
            # QEMU 10.1 refuses no write of nothing; others may, in memory that is only read.
            return DmaLayout.SPEC
        if not isinstance(body, Empty):
            return DmaLayout.SPEC
        log.info("the client answers as QEMU 10.1 does: DMA messages have its layout (profile qemu-10.1)")
        return DmaLayout.QEMU10

    def _chunks(self, address: int, size: int, most: int) -> Iterator[tuple[int, int]]:
        """The pieces (address, size), one at a time: a client may allow a single byte a message."""
        step = min(self._connection.transfer_limit, most) or 1
        return ((at, min(step, address + size - at)) for at in range(address, address + size, step))

    def _ask(self, command: Message, address: int, size: int) -> Message:
        twin, name = self.twin, type(command).__name__
        if self._answers and twin is None:
            raise DmaInHandler(
                f"{size:#x} bytes at {address:#x}: another transfer by message is under way;"
                " start this one from self.call_soon(fn)",
                address=address,
                size=size,
            )
        connection, send = self._connection, self._session.send
        if twin is not None:
            self._check_open(twin, address, size)
            connection, send = twin.connection, twin.send
        message_id, data = connection.command(command)
        self._answers[message_id] = None
        try:
            send(data)
            deadline = time.monotonic() + REPLY_DEADLINE
            while (answer := self._answers[message_id]) is None:
                if twin is not None:
                    self._check_open(twin, address, size)
                left = deadline - time.monotonic()
                if left <= 0:
                    raise PeerTimeout(
                        f"the client has not answered {name} of {size:#x} bytes"
                        f" at {address:#x} within {REPLY_DEADLINE:g} s; give the VMM shared memory"
                    )
                self._pump(left)
                if self._session.closed:
                    raise ConnectionLost(f"the client left during {name} at {address:#x}")
        finally:
            del self._answers[message_id]
        if isinstance(answer, ErrorReply):
            raise DmaError(
                f"the client refuses {name} of {size:#x} bytes at {address:#x} (errno {answer.errno})",
                address=address,
                size=size,
            )
        return answer.body

    @staticmethod
    def _check_open(twin: "Twin", address: int, size: int) -> None:
        if twin.closed:
            raise DmaError(
                f"{size:#x} bytes at {address:#x} were mapped without a descriptor, and the client has closed"
                " the twin socket over which it is asked for them",
                address=address,
                size=size,
            )
