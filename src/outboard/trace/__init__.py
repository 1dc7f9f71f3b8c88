"""What passes between a client and a server: kept in files, and shown.

::

    pcapng.py        the blocks of a capture file, as any pcapng
    capture.py       messages in such a file: CaptureWriter, read_capture
"""

from outboard.trace.capture import Captured, CaptureReader, CaptureWriter, read_capture

__all__ = ["CaptureReader", "CaptureWriter", "Captured", "read_capture"]
