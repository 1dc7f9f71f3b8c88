"""Points 1 to 17: the socket, and the framing of messages.

vfio-user specification, "Transport", "Header", "Message IDs", "Error handling".
"""

from contextlib import suppress

from outboard.conformance import wire
from outboard.conformance.peer import Closed, Peer, Silence
from outboard.conformance.points import (
    LIBVFIO_USER,
    QEMU,
    ROBUST,
    SPEC,
    Group,
    NotApplicable,
    PeerLost,
    Wrong,
)
from outboard.conformance.target import Target

framing = Group[Target]("Server: socket and framing")
point, unseen = framing.point, framing.unseen

NOBODY = 0x666
"""The id of messages that stand inside another's payload: an answer to it tells of a lost stream."""


def in_step(peer: Peer, after: str) -> None:
    """DEVICE_GET_INFO is answered as ever: the stream and the server are all right."""
    try:
        answer = peer.ask(wire.device_info())
    except Wrong as error:
        raise Wrong(f"the next command to be answered after {after}", error.saw) from error
    if len(answer.payload) < 16:
        raise Wrong(f"the next command to be answered after {after}", str(answer))


def next_client(target: Target, after: str) -> None:
    """A new client is served."""
    try:
        peer = target.open()
    except PeerLost as error:
        raise Wrong(f"the next client to be served after {after}", str(error)) from error
    in_step(peer, after)
    peer.close()


@point(
    "P1",
    source="QEMU connects once and never tries again, so a server listens before anything else",
    matters="QEMU ends with 'connection refused'",
    profiles=(SPEC, QEMU, LIBVFIO_USER),
)
def listens(target: Target) -> None:
    """The socket is there, and a client that connects is answered."""
    in_step(target.open(), "VERSION")


unseen(
    "P2",
    "An inherited descriptor or a socket pair serves as well as a path",
    "how a server gets its socket is its own program's business, not seen through the socket",
)
unseen(
    "P3",
    "A dead server's socket file is replaced, a live one's refused, our own removed at the end",
    "only the start of a second server shows it",
)


@point(
    "P4",
    source="Specification, one connection is one client; others wait in the backlog or are closed",
    matters="a curious second program would take the disk away from a running guest",
    profiles=(ROBUST,),
)
def second_client(target: Target) -> None:
    """A second client never disturbs the first."""
    first = target.open()
    try:
        second = target.connect()
        second.send(wire.version().message(1))
    except (PeerLost, Closed):
        in_step(first, "a second client was turned away")
        return
    in_step(first, "a second client has connected")
    second.close()
    in_step(first, "a second client has gone")


@point(
    "P5",
    source="Transport is a stream: a read may end anywhere, also inside the 16 bytes of a header",
    matters="a client whose socket buffer is full for a moment loses its device",
    profiles=(ROBUST,),
)
def header_in_pieces(target: Target) -> None:
    """A header that arrives in sixteen pieces is one header."""
    peer, body = target.open(), wire.device_info()
    data = body.message(7)
    try:
        peer.send_in_pieces([data[at : at + 1] for at in range(16)] + [data[16:]])
        peer.answer(body, 7)
    except Wrong as error:
        raise Wrong("a header of sixteen pieces to be put together", error.saw) from error
    in_step(peer, "a header in pieces")


@point(
    "P6a",
    source="Transport is a stream. libvfio-user reads a body with one recv and takes a short one for an error"
    " (its issue 306: short body read), then reads the rest of the body as a header: desync",
    matters="a client that writes header and body apart, or whose write is cut, is answered EINVAL"
    " and loses the stream",
    profiles=(ROBUST,),
)
def body_in_pieces(target: Target) -> None:
    """A body may be cut at every byte."""
    peer, body = target.open(), wire.device_info()
    data = body.message(7)
    for at in range(16, len(data)):
        peer.send_in_pieces([data[:at], data[at:]])
        answer = peer.answer(body, 7)
        if answer.is_error:
            raise Wrong(f"a body cut after {at - 16} bytes to be put together", str(answer))
    in_step(peer, "bodies in pieces")


@point(
    "P6b",
    source="Message IDs: several commands may be outstanding, and the receiver takes them in order",
    matters="QEMU sends hundreds of DMA_MAP at start and waits for the last only",
    profiles=(SPEC, QEMU),
)
def pipelined(target: Target) -> None:
    """A thousand commands in one write are answered in their order."""
    peer, body = target.open(), wire.device_info()
    peer.send(b"".join(body.message(number) for number in range(1000)))
    for number in range(1000):
        peer.answer(body, number)


@point(
    "P7a",
    source="QEMU takes a header with one recvmsg (proxy.c, vfio_user_recv_one): a short one is fatal to it;"
    " cloud-hypervisor wants header, body and descriptor of region info in one",
    matters="QEMU gives the device up with 'short read of header'",
    profiles=(QEMU,),
)
def reply_in_one_piece(target: Target) -> None:
    """A reply leaves in one sendmsg."""
    peer, body = target.open(), wire.device_info()
    peer.socket.settimeout(peer.timeout)
    for number in range(200):
        peer.send(body.message(number))
        peer.socket.setblocking(True)
        peer.socket.settimeout(peer.timeout)
        try:
            data = peer.socket.recv(4096)
        except TimeoutError:
            raise Silence("a reply", peer.timeout) from None
        if len(data) != 32:
            raise Wrong("the 32 bytes of the reply at once", f"{len(data)} bytes first, in try {number + 1}")


@point(
    "P7b",
    source="A socket's buffer is finite; a reply that does not fit waits and is not cut",
    matters="a client that is busy with something else loses the stream",
    profiles=(SPEC, QEMU),
)
def late_reader(target: Target) -> None:
    """Replies that fill the socket are all delivered, whole and in order."""
    size = target.facts.region(wire.CONFIG).size
    peer, body = target.open(), wire.region_read(wire.CONFIG, 0, size)
    count = (2 << 20) // size
    peer.send(b"".join(body.message(number & 0xFFFF) for number in range(count)))
    for number in range(count):
        answer = peer.answer(body, number & 0xFFFF)
        if len(answer.payload) != 16 + size:
            raise Wrong(f"{size} bytes of configuration space", str(answer))


@point(
    "P8",
    source="Header: a reply has the id and the command of what it answers, type 1, and its own whole size",
    matters="no client could tell which of its commands is answered",
    profiles=(SPEC, QEMU, LIBVFIO_USER),
)
def reply_echoes(target: Target) -> None:
    """A reply repeats id and command of what it answers."""
    peer = target.open()
    for number in (0, 1, 0x7FFF, 0xFFFF):
        for body in (wire.device_info(), wire.irq_info(0), wire.region_info(7)):
            answer = peer.ask(body, id=number)
            wire.close_all(answer.fds)
            if answer.flags != wire.REPLY or answer.size != 16 + len(answer.payload):
                raise Wrong(
                    "flags 0x1 and a size of header and payload",
                    f"flags {answer.flags:#x}, size {answer.size}",
                )


def refusals(peer: Peer) -> list[tuple[str, wire.Message]]:
    """Error replies, each with what was asked. Raises NotApplicable if nothing is refused."""
    asked = {
        "an unknown command": wire.Body(999),
        "DEVICE_GET_INFO with argsz 8": wire.device_info(8),
        "region info of region 100": wire.region_info(100),
        "SET_IRQS with no action": wire.set_irqs(0, wire.DATA_NONE),
        "a read of region 100": wire.region_read(100, 0, 4),
        "a read beyond configuration space": wire.region_read(wire.CONFIG, 1 << 20, 4),
    }
    for at in (0x00, 0x44, 0xFC):  # where libvfio-user refuses to write
        what = f"a write to configuration space at {at:#x}"
        asked[what] = wire.region_write(wire.CONFIG, at, bytes(4))
    answers = [(what, peer.answer(body, peer.command(body))) for what, body in asked.items()]
    if found := [(what, answer) for what, answer in answers if answer.is_error]:
        return found
    raise NotApplicable("the server refuses nothing")


@point(
    "P9a",
    source="Error handling: the reply to a failed command is only the header. libvfio-user's error replies"
    " come with payload where the access itself failed (tran_sock_reply)",
    matters="an error reply with payload puts a client out of step that believes the specification: QEMU"
    " drops a reply it does not expect without draining its body",
    profiles=(SPEC, QEMU),
)
def error_reply_is_bare(target: Target) -> None:
    """An error reply is sixteen bytes, without payload or descriptors."""
    for what, answer in refusals(target.open()):
        if answer.size != 16 or answer.fds:
            wire.close_all(answer.fds)
            raise Wrong(
                f"16 bytes in answer to {what}", f"error replies with payload: {answer}, {answer.size} bytes"
            )


@point(
    "P9b",
    source="Header: an error reply has the type reply, the Error bit, and a positive errno",
    matters="the Rust crate's server leaves the type out; its error replies look like commands",
    profiles=(SPEC, QEMU, LIBVFIO_USER),
)
def error_reply_is_marked(target: Target) -> None:
    """An error reply is marked as reply and as error, and has a positive errno."""
    for what, answer in refusals(target.open()):
        if answer.flags != wire.REPLY | wire.ERROR or not 0 < answer.error < 4096:
            raise Wrong(
                f"flags 0x21 and an errno in answer to {what}",
                f"flags {answer.flags:#x}, errno {answer.error}",
            )


@point(
    "P10a",
    source="Header: No_reply means that no answer is wanted",
    matters="QEMU posts every write to a memory BAR; an answer to it is one nobody waits for",
    profiles=(SPEC, QEMU),
)
def no_reply_on_success(target: Target) -> None:
    """A command marked No_reply gets no answer when it succeeds."""
    line = target.facts.config[0x3C:0x3D]
    peer = target.open()
    for body in (
        wire.device_info(),
        wire.irq_info(0),
        wire.region_info(0),
        wire.region_read(wire.CONFIG, 0, 4),
        wire.region_write(wire.CONFIG, 0x3C, line),
    ):
        peer.command(body, flags=wire.NO_REPLY)
        in_step(peer, f"{wire.name(body.command)} with No_reply")


@point(
    "P10b",
    source="Header: with No_reply there is no answer, not even of an error",
    matters="QEMU posts every write to a memory BAR; an answer to it is one nobody waits for",
    profiles=(SPEC, QEMU),
)
def no_reply_on_failure(target: Target) -> None:
    """A command marked No_reply gets no answer when it fails."""
    peer = target.open()
    for body in (
        wire.Body(999),
        wire.device_info(8),
        wire.region_read(100, 0, 4),
        wire.region_write(100, 0, b"1234"),
        wire.dma_unmap(0xFFFF_0000_0000, wire.PAGE),
        wire.set_irqs(0, wire.DATA_NONE),
    ):
        peer.command(body, flags=wire.NO_REPLY)
        in_step(peer, f"{wire.name(body.command)} that fails with No_reply")


@point(
    "P11",
    source="Message IDs: the sender chooses them and may use one again at any time",
    matters="SPDK's client has id 0 for everything; cloud-hypervisor repeats an id when it asks again",
    profiles=(SPEC,),
)
def ids_repeat(target: Target) -> None:
    """Message ids may repeat, one after the other and at a time."""
    peer, body = target.open(), wire.device_info()
    peer.ask(body, id=0)
    peer.ask(body, id=0)
    peer.send(body.message(0) * 3)
    for _ in range(3):
        peer.answer(body, 0)


@point(
    "P12",
    source="Header: the size counts the header, so it is 16 at least",
    matters="a length that wraps below zero is how a server is taken over",
    profiles=(SPEC, ROBUST),
)
def size_too_small(target: Target) -> None:
    """A size below the header's own is refused, or ends the connection."""
    for size in (0, 1, 15):
        peer = target.open()
        data = wire.Body(wire.DEVICE_INFO).message(7, size=size)
        if peer.refused_or_closed(data, f"a header of size {size} to be refused"):
            with suppress(Closed):
                peer.ask(wire.device_info())
        peer.close()
    next_client(target, "a header that is too small")


@point(
    "P13a",
    source="VERSION: max_data_xfer_size limits what a message may carry, whatever its header says",
    matters="a server that believes two gigabytes allocates them, or waits for them for ever",
    profiles=(SPEC, ROBUST),
)
def size_of_gigabytes(target: Target) -> None:
    """A size above the limit is refused at once."""
    peer = target.open()
    data = wire.Body(wire.REGION_WRITE).message(7, size=0x7FFF_FFFF)
    peer.refused_or_closed(data, "a header that announces 2 GiB to be refused")
    peer.close()
    next_client(target, "a header that announces 2 GiB")


@point(
    "P13b",
    source="A message that is refused is still a message. libvfio-user refuses size > limit and leaves the"
    " body in the stream (get_request, is_valid_header): the body is read as messages, a desync",
    matters="whoever can make a client send one message too long can make it send any command",
    profiles=(SPEC, ROBUST),
)
def oversized_body(target: Target) -> None:
    """A body above the limit is drained, or the connection closed; it is never read as messages."""
    peer = target.open()
    inside = wire.Body(999, bytes(wire.PAGE - 16)).message(NOBODY)
    body = inside * (2 * wire.DEFAULT_TRANSFER // wire.PAGE)
    try:
        peer.send(wire.HEADER.pack(7, wire.REGION_WRITE, 16 + len(body), 0, 0) + body)
        answer = peer.receive("a refusal, or the end of the connection")
        if not answer.is_error:
            raise Wrong("a message of 2 MiB to be refused", str(answer))
        while answer.id != NOBODY:
            number = peer.command(wire.device_info())
            answer = peer.receive("the next command to be answered")
            if answer.id == number:
                return
    except Closed:
        next_client(target, "a message of 2 MiB")
        return
    raise Wrong(
        "the body of a message that is too long to be skipped",
        "the bytes of the body answered as messages: size > limit leaves the stream out of step",
    )


def harmless(target: Target, data: bytes) -> None:
    """Bytes that may be answered, passed over or end the connection, but not bring it out of step."""
    peer = target.open()
    try:
        peer.send(data)
        number = peer.command(wire.device_info(), id=8)
        while (message := peer.receive("the next command to be answered")).id != number:
            wire.close_all(message.fds)
        in_step(peer, "a message with reserved flags")
    except Closed:
        pass
    peer.close()


@point(
    "P14a",
    source="Header: types other than command and reply are reserved",
    matters="a version to come could not be told from nonsense",
)
def reserved_types(target: Target) -> None:
    """A message of a reserved type is refused, ignored, or ends the connection."""
    for kind in (2, 8, 15):
        harmless(target, wire.device_info().message(7, flags=kind))
    next_client(target, "messages of reserved types")


@point(
    "P14b",
    source="Header: Error belongs to replies and the upper bits are reserved; a command has neither",
    matters="a client one version ahead should be answered, not crash its device",
    profiles=(SPEC, ROBUST),
)
def reserved_flags(target: Target) -> None:
    """Reserved flags of a command do no harm."""
    for flags in (0x40, 0x8000_0000, wire.ERROR):
        harmless(target, wire.device_info().message(7, flags=flags))
    next_client(target, "reserved flags")


def unsolicited(target: Target, size: int) -> None:
    """A reply with ``size`` bytes of payload is ignored or refused, and the next command answered."""
    peer, after = target.open(), f"a reply nobody asked for, with {size} bytes of payload"
    peer.send(wire.Body(wire.DMA_READ, bytes(size)).message(7, flags=wire.REPLY))
    number = peer.command(wire.device_info())
    for _ in range(2):
        message = peer.receive(f"the next command to be answered after {after}")
        if (message.id, message.command) == (number, wire.DEVICE_INFO):
            in_step(peer, after)
            return
        if not message.is_error:
            raise Wrong(f"an error, or nothing, in answer to {after}", str(message))
    raise Wrong(
        f"the next command to be answered after {after}", f"{message} with id {message.id}: out of step"
    )


@point(
    "P15a",
    source="Message IDs: a reply that answers nothing is the sender's mistake and concerns no other message",
    matters="a late answer of a client would cost the connection",
    profiles=(SPEC, ROBUST),
)
def unsolicited_reply(target: Target) -> None:
    """A reply nobody asked for leaves the connection usable."""
    unsolicited(target, 0)


@point(
    "P15b",
    source="Message IDs: a reply that answers nothing is still a whole message; libvfio-user leaves its"
    " payload in the stream",
    matters="a late answer of a client to a DMA_READ that was given up costs the connection",
    profiles=(SPEC, ROBUST),
)
def unsolicited_data(target: Target) -> None:
    """A reply nobody asked for, with payload, leaves the stream in step."""
    unsolicited(target, 32)


@point(
    "P16",
    source="Error handling: a command that is not understood is answered by an error",
    matters="a client that tries a newer command would wait for ever, or lose the stream",
    profiles=(SPEC, QEMU, LIBVFIO_USER),
)
def unknown_commands(target: Target) -> None:
    """An unknown command is refused, and the stream stays in step."""
    peer = target.open()
    for number in (0, 14, 19, 999, 0xFFFF, wire.DMA_READ, wire.DMA_WRITE):
        for payload in (b"", bytes(24)):
            peer.refused(wire.Body(number, payload))
    in_step(peer, "unknown commands")


@point(
    "P17",
    source="Each command has a payload of its own size; less of it cannot be carried out",
    matters="a server that reads on takes the next message for the payload, or reads beyond its buffer",
    profiles=(SPEC, ROBUST),
)
def missing_payload(target: Target) -> None:
    """A command with too little payload is refused, and the stream stays in step."""
    peer = target.open()
    for number in (*range(wire.DMA_MAP, wire.DMA_READ), wire.WRITE_MULTI, wire.FEATURE, 17, 18):
        for size in (0, 3):
            what = f"{wire.name(number)} with {size} bytes of payload"
            peer.refused(wire.Body(number, bytes(size)), what=what)
    in_step(peer, "commands without payload")
