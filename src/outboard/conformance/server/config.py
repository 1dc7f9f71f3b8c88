"""Points 67 to 76: configuration space, as the guest and QEMU use it. What is written is written back.

PCI Local Bus 3.0, chapter 6; PCI Express 5.0, section 7. vfio-user specification, "VFIO_USER_REGION_READ".
"""

from outboard.conformance import facts, wire
from outboard.conformance.facts import config16, config32
from outboard.conformance.peer import Peer
from outboard.conformance.points import LIBVFIO_USER, QEMU, ROBUST, SPEC, Group, NotApplicable, Wrong
from outboard.conformance.target import Target

access = Group[Target]("Server: region access")
point = access.point

COMMAND, STATUS, CACHE_LINE, BARS, ROM_BAR, POINTER, LINE, PIN = 4, 6, 0x0C, 0x10, 0x30, 0x34, 0x3C, 0x3D
IO, MEMORY, MASTER, PARITY, SERR, INTX_OFF = 1, 2, 4, 0x40, 0x100, 0x400
ROM_PROBE = 0xFFFF_F800


def get(peer: Peer, at: int, size: int) -> int:
    """A register of configuration space."""
    return int.from_bytes(facts.read(peer, wire.CONFIG, at, size), "little")


def put(peer: Peer, at: int, size: int, value: int) -> None:
    """Write a register of configuration space. Raises Wrong if that is refused."""
    facts.write(peer, wire.CONFIG, at, value.to_bytes(size, "little"))


def borrow(target: Target, at: int, size: int) -> int:
    """The value of a register as it is, which it gets back when the check has ended."""
    value = int.from_bytes(target.facts.config[at : at + size], "little")
    target.restore_later(lambda peer: put(peer, at, size, value))
    return value


@point(
    "P67",
    source="REGION_READ: any count at any offset. QEMU reads the whole space at start, then 1, 2 and 4 bytes",
    matters="QEMU fails with a short read, or the guest sees other capabilities than QEMU",
    profiles=(SPEC, QEMU, LIBVFIO_USER),
)
def config_reads(target: Target) -> None:
    """Configuration space reads the same whole and in pieces."""
    peer, size = target.open(), target.facts.region(wire.CONFIG).size
    whole = facts.read(peer, wire.CONFIG, 0, size)
    bodies = [
        (at, count, wire.region_read(wire.CONFIG, at, count))
        for count in (1, 2, 4, 8)
        for at in range(256 - count + 1)
    ]
    peer.send(b"".join(body.message(7) for _, _, body in bodies))
    for at, count, body in bodies:
        answer = peer.answer(body, 7)
        if answer.is_error or answer.payload[16:] != whole[at : at + count]:
            raise Wrong(
                f"{whole[at : at + count].hex()} from a read of {count} bytes at {at:#x}",
                str(answer) if answer.is_error else answer.payload[16:].hex(),
            )


@point(
    "P68",
    source="PCI 6.2.5.1: after all ones are written a BAR reads its size; its type bits are read-only."
    " SeaBIOS, OVMF and Linux size BARs so",
    matters="firmware gives the BAR no room, or too little",
    profiles=(SPEC, QEMU, LIBVFIO_USER),
)
def bar_sizing(target: Target) -> None:
    """BAR sizing answers for memory, 64-bit and I/O BARs."""
    peer, number, judged = target.open(), 0, False
    while number < 6:
        at, index = BARS + 4 * number, number
        kind = config32(target.facts.config, at)
        wide = not kind & 1 and kind & 6 == 4
        number += 2 if wide else 1
        size = target.facts.regions[index].size
        if not size:
            continue
        judged = True
        width, low = (8 if wide else 4), (0x3 if kind & 1 else 0xF)
        for word in range(at, at + width, 4):
            borrow(target, word, 4)
            put(peer, word, 4, 0xFFFF_FFFF)
        value = get(peer, at, 4) | (get(peer, at + 4, 4) << 32 if wide else 0)
        mask = (1 << 8 * width) - 1
        if kind & 1:  # an I/O BAR may leave its upper half away
            value, mask = value & 0xFFFF, 0xFFFF
        if value & low != kind & low or value & ~low != mask & ~(size - 1) & ~low:
            raise Wrong(
                f"BAR {index} of {size:#x} bytes to read {mask & ~(size - 1) | kind & low:#x} after ones",
                f"{value:#x}",
            )
    if not judged:
        raise NotApplicable("the device has no BAR")


@point(
    "P69",
    source="QEMU writes 0xfffff800 to the ROM BAR of every device and reads it back (vfio_pci_size_rom)",
    matters="QEMU adds a ROM that does not exist, or misses the one that does",
    profiles=(SPEC, QEMU),
)
def rom_bar(target: Target) -> None:
    """The ROM BAR sizes, and reads zero where there is no ROM."""
    peer = target.open()
    borrow(target, ROM_BAR, 4)
    put(peer, ROM_BAR, 4, ROM_PROBE)
    value, size = get(peer, ROM_BAR, 4), target.facts.regions[wire.ROM].size
    wanted = ROM_PROBE & ~(size - 1) if size else 0
    if value & ROM_PROBE != wanted:
        raise Wrong(f"{wanted:#x} with a ROM of {size:#x} bytes", f"{value:#x}")


@point(
    "P70a",
    source="PCI 6.2.2: I/O, memory and master enable, parity and SERR, interrupt disable; the rest is"
    " reserved",
    matters="the guest cannot enable the device, or reads back what it must not",
    profiles=(SPEC, QEMU, LIBVFIO_USER),
)
def command_bits(target: Target) -> None:
    """COMMAND has the right writable bits."""
    peer, regions = target.open(), target.facts.regions[:6]
    borrow(target, COMMAND, 2)
    needed = MASTER | INTX_OFF
    for number, region in enumerate(regions):
        if region.size:
            needed |= IO if config32(target.facts.config, BARS + 4 * number) & 1 else MEMORY
    put(peer, COMMAND, 2, 0xFFFF)
    ones = get(peer, COMMAND, 2)
    put(peer, COMMAND, 2, 0)
    zeros = get(peer, COMMAND, 2)
    if ones & needed != needed or zeros & needed or ones & 0xF800:
        raise Wrong(
            f"bits {needed:#06x} to be writable and those above 0x0400 to stay 0",
            f"{ones:#06x} after ones, {zeros:#06x} after zeros",
        )


@point(
    "P70b",
    source="PCI 6.2.3: the capabilities bit of STATUS says whether the pointer at 0x34 is one",
    matters="the guest finds no MSI-X",
    profiles=(SPEC, QEMU, LIBVFIO_USER),
)
def status_bits(target: Target) -> None:
    """STATUS says whether there are capabilities, whatever is written to it."""
    peer = target.open()
    before = get(peer, STATUS, 2)
    put(peer, STATUS, 2, 0)
    put(peer, STATUS, 2, 0xFFFF)
    after = get(peer, STATUS, 2)
    has = bool(target.facts.config[POINTER])
    if bool(before & 0x10) != has or (before ^ after) & ~0xF900:
        raise Wrong(
            f"the capabilities bit {'set' if has else 'clear'}, and only error bits to change",
            f"{before:#06x}, then {after:#06x}",
        )


@point(
    "P71",
    source="PCI 6.2.4: the line is the firmware's to write, the pin 0 to 4. QEMU looks at the pin before"
    " INTx",
    matters="QEMU does not enable INTx, or refuses the device for its pin",
    profiles=(SPEC, QEMU, LIBVFIO_USER),
)
def interrupt_pin(target: Target) -> None:
    """Interrupt Line is writable, Interrupt Pin tells the truth."""
    peer = target.open()
    borrow(target, LINE, 1)
    for value in (0x0B, 0xFF):
        put(peer, LINE, 1, value)
        if (seen := get(peer, LINE, 1)) != value:
            raise Wrong(f"Interrupt Line to read {value:#x}", f"{seen:#x}")
    pin, vectors = get(peer, PIN, 1), target.facts.vectors[wire.INTX]
    if pin > 4 or bool(pin) != bool(vectors):
        raise Wrong(f"a pin of {'1 to 4' if vectors else '0'} with {vectors} INTx vectors", f"{pin}")


@point(
    "P72",
    source="QEMU zeroes the six BARs one by one after a reset (vfio_pci_post_reset)",
    matters="QEMU complains at every reboot",
    profiles=(QEMU,),
)
def bars_zeroed(target: Target) -> None:
    """BARs may be zeroed one by one."""
    peer = target.open()
    for at in range(BARS, BARS + 24, 4):
        borrow(target, at, 4)
        put(peer, at, 4, 0xFE00_0000)
        put(peer, at, 4, 0)
        if (value := get(peer, at, 4)) & ~0xF:
            raise Wrong(f"the BAR at {at:#x} to be 0 but for its type", f"{value:#x}")


@point(
    "P73a",
    source="PCI 6.7: id and next pointer of a capability are read-only; writing to them has no effect",
    matters="a guest's stray write cuts the chain, or costs an error that QEMU reports",
    profiles=(SPEC, QEMU),
)
def capability_headers(target: Target) -> None:
    """Writes to a capability's header are ignored without an error."""
    peer, chain = target.open(), list(facts.capabilities(target.facts.config))
    if not chain:
        raise NotApplicable("the device has no PCI capabilities")
    for _, at in chain:
        header = config16(target.facts.config, at)
        put(peer, at, 2, header ^ 0xFFFF)
        if (seen := get(peer, at, 2)) != header:
            raise Wrong(f"the header at {at:#x} to stay {header:#06x}", f"{seen:#06x}")


@point(
    "P73b",
    source="A guest may write a capability's control word whole, by its upper byte alone, or with its"
    " neighbours in four bytes (seen from QEMU with MSI-X)",
    matters="the guest cannot switch MSI or MSI-X on",
    profiles=(SPEC, QEMU, LIBVFIO_USER),
)
def control_words(target: Target) -> None:
    """MSI and MSI-X are enabled by 2-byte, upper-byte and 4-byte writes."""
    peer, judged = target.open(), False
    for identifier, at in facts.capabilities(target.facts.config):
        bit = {facts.MSI_CAP: 0x0001, facts.MSIX_CAP: 0x8000}.get(identifier)
        if bit is None:
            continue
        judged = True
        off = borrow(target, at + 2, 2) & ~bit
        on, word = off | bit, config16(target.facts.config, at)
        half = (at + 3, 1, on >> 8) if bit > 0xFF else (at + 2, 1, on & 0xFF)
        whole, clear = (at + 2, 2, on), (at + 2, 2, off)
        for where, size, value in (whole, clear, (at, 4, word | on << 16), clear, half, clear):
            put(peer, where, size, value)
            wanted = (where, size, value) != clear
            if bool(get(peer, at + 2, 2) & bit) != wanted:
                raise Wrong(
                    f"capability {identifier:#04x} {'on' if wanted else 'off'} after {size} bytes"
                    f" {value:#x} were written at {where:#x}",
                    "the other way round",
                )
    if not judged:
        raise NotApplicable("the device has neither MSI nor MSI-X")


@point(
    "P74a",
    source="PCI Power Management 3.2.4: the two lowest bits of PMCSR are the power state. QEMU sets D0"
    " before a"
    " reset and reads it back",
    matters="the guest cannot suspend, and QEMU reports a device stuck in D3",
    profiles=(SPEC, QEMU, LIBVFIO_USER),
)
def power_states(target: Target) -> None:
    """A power state that is written is read back."""
    at = target.facts.capability(facts.POWER_CAP) + 4
    peer, before = target.open(), borrow(target, at, 2)
    for state in (3, 0):
        put(peer, at, 2, before & ~3 | state)
        if (seen := get(peer, at, 2) & 3) != state:
            raise Wrong(f"power state D{state}", f"D{seen}")


@point(
    "P74b",
    source="PCI Express 7.5.3: device control and link control are writable; QEMU passes the guest's"
    " writes on",
    matters="the guest cannot set payload sizes, or gets an error for trying",
    profiles=(SPEC, LIBVFIO_USER),
)
def device_control(target: Target) -> None:
    """Device control and link control take writes."""
    at = target.facts.capability(facts.EXPRESS_CAP)
    peer = target.open()
    for where, bit in ((at + 8, 0x0001), (at + 16, 0x0040)):
        before = borrow(target, where, 2)
        put(peer, where, 2, before ^ bit)
        if where == at + 8 and (seen := get(peer, where, 2)) != before ^ bit:
            raise Wrong(f"device control {before ^ bit:#06x}", f"{seen:#06x}")


@point(
    "P75",
    source="PCI Express 7.6: extended capabilities begin at 0x100, each points to the next; 0 there is none",
    matters="QEMU and Linux walk a chain that does not end",
    profiles=(SPEC, QEMU, LIBVFIO_USER),
)
def extended_chain(target: Target) -> None:
    """The extended chain begins at 0x100 and ends."""
    config = target.facts.config
    if len(config) < wire.PAGE:
        raise NotApplicable("the configuration space has 256 bytes")
    chain = list(facts.extended_capabilities(config))
    if (chain and chain[-1][1]) or any(at % 4 for _, _, at in chain):
        raise Wrong("a chain whose last points to 0, on 4-byte borders", f"{[hex(at) for _, _, at in chain]}")


@point(
    "P76",
    source="PCI 6.1: writes to reserved and read-only registers have no effect. QEMU passes every write of"
    " the"
    " guest on",
    matters="lspci, setpci and firmware write there; each time QEMU reports a failed write",
    profiles=(SPEC, QEMU, ROBUST),
)
def ignored_writes(target: Target) -> None:
    """Writes to read-only and undefined bytes are ignored without an error."""
    peer, config = target.open(), target.facts.config
    known = {at + byte for _, at in facts.capabilities(config) for byte in range(64)}
    undefined = [at for at in range(0x40, 256, 4) if known.isdisjoint(range(at, at + 4))]
    for at in (0x00, 0x08, 0x28, 0x2C, 0x38, *undefined[:1], *undefined[-1:]):
        before = config32(config, at)
        put(peer, at, 4, before ^ 0xFFFF_FFFF)
        if at < 0x40 and (seen := get(peer, at, 4)) != before:
            borrow(target, at, 4)
            raise Wrong(f"the read-only bytes at {at:#x} to stay {before:#010x}", f"{seen:#010x}")
        if at >= 0x40 and get(peer, at, 4) != before:
            put(peer, at, 4, before)
