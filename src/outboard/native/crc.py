"""Cyclic redundancy checks of memory, at the speed of the machine: the guards of protected blocks.

The vocabulary is that of `outboard.native.memory`: addresses and sizes in, a number out. Each body here goes
byte by byte through a table; the compiled one (`outboard.native.crc_lowering`) multiplies without carries,
64 bytes at once where the processor can.

A check goes on where another ended: ``crc16(crc16(0, a, 8), a + 8, 8)`` is ``crc16(0, a, 16)``.
"""

import ctypes
from dataclasses import dataclass

from outboard.native.jit import primitive


@dataclass(frozen=True, slots=True)
class Polynomial:
    """What a check divides by: ``value`` without its highest power, of degree ``width``.

    ``reflected``: the lowest bit of a byte is its highest power, and so the register's.
    """

    value: int
    width: int
    reflected: bool

    def table(self) -> tuple[int, ...]:
        """What each byte does to a register that was zero.

        >>> [hex(entry) for entry in T10_DIF.table()[:3]]
        ['0x0', '0x8bb7', '0x9cd9']
        """
        return tuple(self._remainder(byte) for byte in range(256))

    def _remainder(self, byte: int) -> int:
        value = reflect(byte, 8) if self.reflected else byte
        register = value << self.width - 8
        for _ in range(8):
            register = register << 1 ^ (register >> self.width - 1) * (1 << self.width | self.value)
        return reflect(register, self.width) if self.reflected else register


def reflect(value: int, width: int) -> int:
    """The lowest ``width`` bits of ``value`` in the opposite order.

    >>> bin(reflect(0b0011, 4))
    '0b1100'
    """
    return int(f"{value:0{width}b}"[::-1], 2)


T10_DIF = Polynomial(0x8BB7, 16, reflected=False)
NVME = Polynomial(0xAD93_D235_94C9_3659, 64, reflected=True)

_T10_DIF_TABLE, _NVME_TABLE = T10_DIF.table(), NVME.table()
_ALL_ONES = (1 << 64) - 1


@primitive
def crc16(crc: int, address: int, size: int) -> int:
    """CRC-16/T10-DIF of ``size`` bytes, a multiple of 8, behind those whose check is ``crc`` (0: none)."""
    for byte in ctypes.string_at(address, size):
        crc = (crc << 8 & 0xFFFF) ^ _T10_DIF_TABLE[crc >> 8 ^ byte]
    return crc


@primitive
def crc64(crc: int, address: int, size: int) -> int:
    """The 64-bit CRC of NVM Express (CRC-64/NVME), as `crc16`; a signed number, as all in compiled code."""
    register = crc & _ALL_ONES ^ _ALL_ONES
    for byte in ctypes.string_at(address, size):
        register = register >> 8 ^ _NVME_TABLE[(register ^ byte) & 0xFF]
    return ctypes.c_int64(register ^ _ALL_ONES).value
