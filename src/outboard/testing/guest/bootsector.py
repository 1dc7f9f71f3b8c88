"""A disk that PC firmware (SeaBIOS) boots: two sectors of hand-assembled 8086 code and text.

The first sector prints a sentence on COM1, reads the second with INT 13h, function 42h (extended
read, BIOS Enhanced Disk Drive Services), and prints the text in it. That the second text appears
shows that the firmware's driver reads the disk; the first alone, that it boots from it.
"""

import struct

SECTOR = 512
DISK = 1 << 20
GREETING = "outboard: booted from sector 0"
SECOND = "outboard: this is sector 1"

_LOADED_AT = 0x7C00
_BUFFER = 0x7E00
_TEXT = 0x80
"""Where in sector 0 the greeting is: after the code, before the signature."""
_PACKET = 0x70
"""Where the disk address packet for INT 13h is."""

# DL holds the number of the drive we were booted from, for INT 13h, until the end.
_LISTING = """
fa              # cli
31 c0           # xor  ax, ax
8e d8           # mov  ds, ax
8e c0           # mov  es, ax
8e d0           # mov  ss, ax
bc 00 7c        # mov  sp, 0x7c00
fb              # sti
fc              # cld
88 d3           # mov  bl, dl          ; the serial port's address takes dx
be 80 7c        # mov  si, greeting
e8 14 00        # call print
88 da           # mov  dl, bl
b4 42           # mov  ah, 0x42
be 70 7c        # mov  si, packet
cd 13           # int  0x13
72 06           # jc   halt
be 00 7e        # mov  si, buffer
e8 03 00        # call print
f4              # halt: hlt
eb fd           # jmp  halt
                # print:               ; the text at ds:si, up to a zero byte, on COM1
ac              # lodsb
84 c0           # test al, al
74 12           # jz   done
88 c4           # mov  ah, al
ba fd 03        # mov  dx, 0x3fd       ; line status
ec              # wait: in al, dx
a8 20           # test al, 0x20        ; transmitter empty
74 fb           # jz   wait
88 e0           # mov  al, ah
ba f8 03        # mov  dx, 0x3f8       ; data
ee              # out  dx, al
eb e9           # jmp  print
c3              # done: ret
"""
_CODE = bytes.fromhex("".join(line.partition("#")[0] for line in _LISTING.splitlines()))


def bootable_disk(greeting: str = GREETING, second: str = SECOND) -> bytes:
    """A disk image of 1 MiB that prints ``greeting``, then ``second`` read from sector 1, on COM1.

    Raises:
        ValueError: a text is longer than its place in the sector.
    """
    first = bytearray(SECTOR)
    first[: len(_CODE)] = _CODE
    # Disk address packet: its size, blocks to read, the buffer's offset and segment, the first block.
    struct.pack_into("<BxHHHQ", first, _PACKET, 16, 1, _BUFFER, 0, 1)
    _place(first, _TEXT, greeting, SECTOR - 2)
    struct.pack_into("<H", first, SECTOR - 2, 0xAA55)
    next_sector = bytearray(SECTOR)
    _place(next_sector, 0, second, SECTOR)
    return bytes(first + next_sector).ljust(DISK, b"\0")


def _place(sector: bytearray, start: int, text: str, end: int) -> None:
    encoded = text.encode() + b"\r\n\0"
    if len(encoded) > end - start:
        raise ValueError(f"the text takes {len(encoded)} bytes where {end - start} are free: {text!r}")
    sector[start : start + len(encoded)] = encoded
