"""What is behind a disk.

======================  ==================================================================
`open_storage`          ``ram:256M``, ``null:1T``, ``disk.img``, ``disk.img,size=1G,direct=on``
`Storage`               what a controller asks of a disk; any object with these is one
`FileStorage`           a file or block device (`open_file`); `DirectStorage` past the page cache
`RamStorage`            memory
`NullStorage`           nothing
`Resizable`             what a storage has whose size can be changed
`VolatileStorage`       a filter: a write cache, whose unflushed content a power cut loses
`fast_of`               what compiled code can do by itself: `Nothing`, `Memory`, `Descriptor`, or None
`layers`                a storage and what is below it
`persist`               make a range durable, as Force Unit Access asks for
`parse_size`            ``256M`` -> 268435456; `format_size` back
======================  ==================================================================
"""

from outboard.storage.base import Data, Resizable, Storage, layers, persist
from outboard.storage.direct import DirectStorage
from outboard.storage.fast import Descriptor, Fast, Memory, Nothing, fast_of
from outboard.storage.file import FileStorage
from outboard.storage.null import NullStorage
from outboard.storage.opening import open_file
from outboard.storage.ram import RamStorage
from outboard.storage.sizes import format_size, parse_size
from outboard.storage.spec import open_storage
from outboard.storage.volatile import Loss, VolatileStorage

__all__ = [
    "Data",
    "Descriptor",
    "DirectStorage",
    "Fast",
    "FileStorage",
    "Loss",
    "Memory",
    "Nothing",
    "NullStorage",
    "RamStorage",
    "Resizable",
    "Storage",
    "VolatileStorage",
    "fast_of",
    "format_size",
    "layers",
    "open_file",
    "open_storage",
    "parse_size",
    "persist",
]
