"""What passes between a client and a server: kept in files, and shown.

::

    pcapng.py        the blocks of a capture file, as any pcapng
    capture.py       messages in such a file: CaptureWriter, read_capture
    describe.py      what each message is, which command a reply answers: Describer
      words.py         payloads in words
      registers.py     registers by name: configuration space, and what devices declare
    timeline.py      a capture for Perfetto
    vfio_user.lua    a capture in Wireshark
    relay.py         two sockets joined, message by message
    proxy.py         Proxy: between any VMM and any server
    faults.py        what it breaks on purpose, and when
    fault_spec.py    the same in one word, as on the command line
    interrupts.py    its place between eventfds
    replay.py        a recorded client speaks again, to a fresh server
    stand_in.py      the memory it lends
"""

from pathlib import Path

from outboard.trace.capture import Captured, CaptureReader, CaptureWriter, read_capture
from outboard.trace.describe import Described, Describer, Kind, as_json, describe
from outboard.trace.timeline import TimelineWriter, write_timeline

__all__ = [
    "CaptureReader",
    "CaptureWriter",
    "Captured",
    "Described",
    "Describer",
    "Kind",
    "TimelineWriter",
    "as_json",
    "describe",
    "dissector",
    "read_capture",
    "write_timeline",
]


def dissector() -> Path:
    """The dissector for Wireshark and tshark, in Lua, as it comes with the package."""
    return Path(__file__).with_name("vfio_user.lua")
