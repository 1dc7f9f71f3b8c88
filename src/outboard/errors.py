"""Every error of the package, and whose fault each one is.

::

    OutboardError
    ├── ProtocolError            bytes or messages that break vfio-user
    │   ├── LocalProtocolError   we were about to send what may not be sent (ours)
    │   └── RemoteProtocolError  the peer sent it (the peer's)
    ├── RequestRefused           a well-formed request that cannot be honoured (the peer's)
    ├── StateError               a saved device state that cannot be this device's (the peer's)
    ├── RemoteError              the peer answered our command with an error
    ├── ConnectionLost           the peer went away
    ├── PeerTimeout              the peer did not answer, or no interrupt came, in time
    ├── DmaError                 the guest's memory refuses an access (the guest's)
    │   ├── DmaUnmapped          nothing, or not everything, is mapped there
    │   ├── DmaForbidden         mapped, but not for this direction
    │   └── DmaInHandler         DMA by message where it would deadlock the VMM (the author's)
    ├── DefinitionError          a device class that cannot be (the author's)
    ├── StorageError             what is behind a disk failed or cannot be opened
    ├── CaptureError             a capture file that is none, or damaged
    ├── SetupError               the machine lacks something; says what mends it
    │   └── ConfigurationError   what a file, a flag or a caller asks for cannot be (the configuration's)
    └── GuestError               a guest virtual machine failed or answered badly

Every error carries ``fault`` (see `Fault`) and ``errno``: what goes into the error reply when the
error ends a request of the peer.
"""

import errno as _errno
from enum import StrEnum


class Fault(StrEnum):
    """Whose mistake an error reports."""

    OURS = "ours"
    PEER = "the peer's"
    GUEST = "the guest's"
    AUTHOR = "the device author's"
    CONFIGURATION = "the configuration's"
    CALLER = "the caller's"
    MACHINE = "the machine's"


class OutboardError(Exception):
    """Base of every error of the package.

    ``sentence`` names the offending value and what to do; ``errno`` is for the wire.
    """

    fault: Fault = Fault.OURS
    errno: int = _errno.EIO

    def __init__(self, sentence: str, *, errno: int | None = None) -> None:
        super().__init__(sentence)
        if errno is not None:
            self.errno = errno

    @property
    def sentence(self) -> str:
        """The whole message."""
        return str(self.args[0])


class ProtocolError(OutboardError):
    """Bytes or messages that break vfio-user."""

    errno = _errno.EINVAL


class LocalProtocolError(ProtocolError):
    """We were about to send something the protocol, or the peer's limits, do not allow now."""

    fault = Fault.OURS


class RemoteProtocolError(ProtocolError):
    """The peer sent something the protocol does not allow."""

    fault = Fault.PEER


class RequestRefused(OutboardError):
    """A well-formed request of the peer that cannot be honoured; answered with ``errno``."""

    fault = Fault.PEER
    errno = _errno.EINVAL


class StateError(OutboardError):
    """A saved state that cannot be read, or is no state of this device."""

    fault = Fault.PEER
    errno = _errno.EINVAL


class RemoteError(OutboardError):
    """The peer answered our command with an error reply.

    ``command`` is the command's name; ``errno`` is the peer's, 0 if it gave none.
    """

    fault = Fault.PEER

    def __init__(self, sentence: str, *, command: str, errno: int) -> None:
        super().__init__(sentence, errno=errno)
        self.command = command


class ConnectionLost(OutboardError):
    """The peer closed the connection; within a message that is a RemoteProtocolError."""

    fault = Fault.PEER
    errno = _errno.ENOTCONN


class PeerTimeout(OutboardError):
    """The peer did not answer, or the awaited interrupt did not come, in time."""

    fault = Fault.PEER
    errno = _errno.ETIMEDOUT


class DmaError(OutboardError):
    """Guest memory refuses an access; ``address`` and ``size`` say which."""

    fault = Fault.GUEST
    errno = _errno.EFAULT

    def __init__(self, sentence: str, *, address: int = 0, size: int = 0, errno: int | None = None) -> None:
        super().__init__(sentence, errno=errno)
        self.address = address
        self.size = size


class DmaUnmapped(DmaError):
    """Nothing, or not everything, is mapped at the address."""


class DmaForbidden(DmaError):
    """The range is mapped, but not for this direction, or bus mastering is off."""

    errno = _errno.EACCES


class DmaInHandler(DmaError):
    """DMA by message was tried inside a register handler, while the VMM waits for our answer."""

    fault = Fault.AUTHOR
    errno = _errno.EDEADLK


class DefinitionError(OutboardError, TypeError):
    """A device class, or a field of it, that cannot be: raised when the class is created."""

    fault = Fault.AUTHOR


class StorageError(OutboardError):
    """What is behind a disk failed, or cannot be opened."""

    fault = Fault.MACHINE


class CaptureError(OutboardError):
    """A file that is no capture of vfio-user, or a damaged one."""

    fault = Fault.MACHINE


class SetupError(OutboardError):
    """The machine lacks something; the sentence ends with what mends it."""

    fault = Fault.MACHINE


class ConfigurationError(SetupError):
    """What a configuration file, or a flag, asks for cannot be; the sentence begins with the place."""

    fault = Fault.CONFIGURATION


class GuestError(OutboardError):
    """A guest virtual machine failed, or a command inside it did.

    ``status`` is the exit status of a command that ended with one, else None; ``output`` is what the
    command had printed.
    """

    fault = Fault.GUEST

    def __init__(self, sentence: str, *, status: int | None = None, output: str = "") -> None:
        super().__init__(sentence)
        self.status = status
        self.output = output
