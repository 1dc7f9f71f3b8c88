"""What compiled code can do with a storage by itself, without calling its methods.

A storage says so with an attribute ``fast``, one of the kinds here. Without it, or with None, every access
goes through the methods, in Python. Both ways are used side by side: the methods see at once what compiled
code wrote, and the other way round.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Nothing:
    """Reads give zeros, writes vanish."""


@dataclass(frozen=True, slots=True)
class Memory:
    """``size`` bytes at ``address`` of this process, there until the storage is closed; nothing to flush."""

    address: int
    size: int


@dataclass(frozen=True, slots=True)
class Descriptor:
    """The file behind ``fd``, byte for byte, open until the storage is closed; a flush is fdatasync(2).

    With ``direct`` it is open with O_DIRECT: the address of a buffer, the offset and the size have to be
    multiples of ``alignment`` bytes.
    """

    fd: int
    direct: bool = False
    alignment: int = 1


Fast = Nothing | Memory | Descriptor
"""The kinds there are."""


def fast_of(storage: object) -> Fast | None:
    """What ``storage`` offers compiled code, or None.

    >>> fast_of("a storage without the attribute")
    """
    offer = getattr(storage, "fast", None)
    return offer if isinstance(offer, Fast) else None
