"""The grammar: what a client says, mostly as the specification has it, with a mistake here and there."""

import struct
from collections.abc import Callable

from fuzz.choices import Choices
from tests import raw

PAGE = 4096
REGIONS = (0, 0, 1, 2, 3, 4, 5, 6, 7, 7, 8, 9)
OFFSETS = (*range(0, 0x40, 4), 1, 2, 3, 0xFF, 0x100, 0xFFF, 0x1000, 0x1004, 0x1008, 0x2000, 0x3FFF)
COUNTS = (4, 8, 1, 2, 0, 3, 16, 64, 256, 4096, 0x4000)
ADDRESSES = tuple(range(0, 8 * PAGE, PAGE))
SIZES = (PAGE, PAGE, 2 * PAGE, 4 * PAGE, 0, 1, 100)
IRQ_KINDS = (0x24, 0x21, 0x22, 0x09, 0x11, 0x0A, 0x12, 0x14, 0x0C)
FEATURES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
OPERATIONS = (1 << 16, 1 << 17, 1 << 18, 5 << 16, 6 << 16, 3 << 16, 0)
TEXTS = (
    raw.QEMU_JSON,
    b"",
    b"{}\0",
    raw.SERVER_JSON,
    b'{"capabilities":{"max_msg_fds":0,"max_data_xfer_size":1,"twin_socket":{"supported":true}}}\0',
    b'{"capabilities":{"max_data_xfer_size":100,"max_dma_maps":3,"pgsizes":4096,"write_multiple":true}}\0',
)


def version(c: Choices) -> bytes:
    """VERSION with one of several texts, or any."""
    text = c.pick(TEXTS) if c.chance(0.9) else c.take(c.below(64)) + b"\0"
    return raw.version(c.number((0,), 16), c.number((0, 1), 16), text)


def _read(c: Choices) -> bytes:
    return raw.read(c.number(REGIONS), c.number(OFFSETS, 64), c.number(COUNTS))


def _write(c: Choices) -> bytes:
    data = c.take(c.pick((4, 4, 8, 1, 2, 3, 0, 16, 64)))
    return raw.write(c.number(REGIONS), c.number(OFFSETS, 64), data)


def _write_multi(c: Choices) -> bytes:
    return raw.write_multi(
        *(
            (c.pick(REGIONS), c.number(OFFSETS, 64), c.take(c.pick((4, 8, 1, 2, 0))))
            for _ in range(c.below(5))
        )
    )


def _set_irqs(c: Choices) -> bytes:
    index, flags = c.number((2, 2, 1, 0, 3, 4)), c.number(IRQ_KINDS)
    return raw.set_irqs(
        index, flags, c.number((0, 0, 1, 63)), c.number((1, 0, 2, 64)), c.take(c.pick((0, 0, 1, 2)))
    )


def _dma_map(c: Choices) -> bytes:
    flags = c.number((3, 3, 1, 2, 7, 11, 15, 0))
    return raw.dma_map(
        c.number(ADDRESSES, 64), c.number(SIZES, 64), offset=c.number((0, PAGE), 64), flags=flags
    )


def _dma_unmap(c: Choices) -> bytes:
    if c.chance(0.2):
        return raw.dma_unmap(0, 0, flags=2)
    return raw.dma_unmap(c.number(ADDRESSES, 64), c.number(SIZES, 64), flags=c.number((0, 0, 0, 1, 2)))


def _feature(c: Choices) -> bytes:
    """DEVICE_FEATURE: migration states, DMA logging, and their like."""
    flags = c.number(FEATURES) | c.number(OPERATIONS)
    data = b"".join(
        struct.pack("=Q", c.number((0, 1, 2, 3, 4, 5, 6, 7, PAGE, 8 * PAGE), 64)) for _ in range(c.below(6))
    )
    return raw.message(raw.FEATURE, struct.pack("=II", c.number((8 + len(data), 64, 4096)), flags) + data)


def _state(c: Choices) -> bytes:
    """A change of the migration state."""
    return raw.message(raw.FEATURE, struct.pack("=IIIi", 16, 1 << 17 | 2, c.below(9), -1))


def _mig_data(c: Choices) -> bytes:
    if c.chance(0.5):
        return raw.message(raw.MIG_DATA_READ, struct.pack("=II", 8, c.number((4096, 16, 0, 1 << 20))))
    data = c.take(c.below(200))
    if c.chance(0.5):
        data = struct.pack("<8sII", b"outboard", 1, c.below(4)) + data
    return raw.message(raw.MIG_DATA_WRITE, struct.pack("=II", 8 + len(data), len(data)) + data)


def _reply(c: Choices) -> bytes:
    command = c.pick((raw.DMA_READ, raw.DMA_WRITE, raw.RESET))
    flags = c.pick((raw.REPLY, raw.REPLY | raw.ERROR, raw.ERROR))
    return raw.message(command, c.take(c.below(40)), id=c.below(8), flags=flags, error=c.pick((0, 5)))


COMMANDS: tuple[Callable[[Choices], bytes], ...] = (
    _read,
    _write,
    _write,
    _set_irqs,
    _dma_map,
    _dma_unmap,
    lambda c: raw.reset(),
    lambda c: raw.region_info(c.number(REGIONS), c.number((32, 64, 4096))),
    lambda c: raw.irq_info(c.number((0, 1, 2, 3, 4, 5))),
    lambda c: raw.device_info(c.number((16, 4096))),
    lambda c: raw.region_io_fds(c.number(REGIONS), c.number((16, 4096))),
    _write_multi,
    _feature,
    _state,
    _mig_data,
    _reply,
    version,
    lambda c: raw.message(c.number((14, 19, 0, 999), 16), c.take(c.below(40))),
)


def command(c: Choices) -> bytes:
    """One message of a client, now and then with a mistake."""
    data = c.pick(COMMANDS)(c)
    if c.chance(0.75):
        return data
    return mistaken(c, data)


def mistaken(c: Choices, data: bytes) -> bytes:
    """The message with one thing wrong; mostly its header stays true to its size."""
    changed = bytearray(data)
    match c.below(6):
        case 0:
            changed[c.below(len(changed))] ^= 1 << c.below(8)
        case 1 if len(changed) >= 20:
            struct.pack_into("=I", changed, 16 + c.below(len(changed) - 19), c.number((0,)))
        case 2:
            del changed[16 + c.below(len(changed) - 15) :]
        case 3:
            changed += c.take(c.pick((1, 4, 24)))
        case 4:
            struct.pack_into("=I", changed, 8, c.pick((0x10, 0x01, 0x20, 0x21, 0x30, 0x02, 0x40, 0x11)))
        case _:
            struct.pack_into("=I", changed, 4, c.number((0, 15, 16)))
            return bytes(changed)
    if len(changed) >= 8:
        struct.pack_into("=I", changed, 4, len(changed))
    return bytes(changed)
