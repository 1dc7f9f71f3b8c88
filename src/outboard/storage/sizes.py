"""Sizes as people write them: ``4096``, ``4K``, ``256M``, ``1.5G``, ``1T``; always powers of 1024."""

import re

from outboard.errors import StorageError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
_SIZE = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,6})?)\s*([KMGTP]?)(?:i?B)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Return the bytes that ``text`` names.

    >>> parse_size("256M")
    268435456
    >>> parse_size("4KiB"), parse_size("1.5G"), parse_size("512")
    (4096, 1610612736, 512)

    Raises `StorageError` for anything else, and for sizes of zero or beyond 2**63.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise StorageError(f"{text!r} is not a size: write a number and K, M, G or T, as in 256M")
    number, unit = match.groups()
    size = int(float(number) * _UNITS[unit.upper()]) if "." in number else int(number) * _UNITS[unit.upper()]
    if not 0 < size < 1 << 63:
        raise StorageError(f"a size of {text!r} cannot be: it must be at least one byte and below 8192P")
    return size


def format_size(size: int) -> str:
    """Return ``size`` in the largest unit that divides it.

    >>> format_size(268435456), format_size(1000)
    ('256M', '1000')
    """
    for unit in "PTGMK":
        if size and size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]}{unit}"
    return str(size)
