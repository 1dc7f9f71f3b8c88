"""What is behind a disk.

======================  ==================================================================
`open_storage`          ``ram:256M``, ``null:1T``, ``disk.img``, ``disk.img,size=1G``
`Storage`               what a controller asks of a disk; any object with these is one
`FileStorage`           a file or block device (`open_file`)
`RamStorage`            memory
`NullStorage`           nothing
`parse_size`            ``256M`` -> 268435456; `format_size` back
======================  ==================================================================
"""

from outboard.storage.base import Data, Storage
from outboard.storage.file import FileStorage, RamStorage, open_file
from outboard.storage.null import NullStorage
from outboard.storage.sizes import format_size, parse_size
from outboard.storage.spec import open_storage

__all__ = [
    "Data",
    "FileStorage",
    "NullStorage",
    "RamStorage",
    "Storage",
    "format_size",
    "open_file",
    "open_storage",
    "parse_size",
]
