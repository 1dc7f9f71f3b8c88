"""How a command ends: the status codes of NVMe Base 2.0, figures 92 to 98, and the way to raise them."""

from enum import IntEnum

from outboard.errors import Fault, OutboardError

MORE = 1 << 13
DO_NOT_RETRY = 1 << 14


class Status(IntEnum):
    """Status Code Type and Status Code as one number: ``SCT << 8 | SC``."""

    SUCCESS = 0x000
    INVALID_OPCODE = 0x001
    INVALID_FIELD = 0x002
    COMMAND_ID_CONFLICT = 0x003
    DATA_TRANSFER_ERROR = 0x004
    INTERNAL_ERROR = 0x006
    ABORT_REQUESTED = 0x007
    ABORTED_SQ_DELETION = 0x008
    INVALID_NAMESPACE = 0x00B
    COMMAND_SEQUENCE_ERROR = 0x00C
    INVALID_SGL_SEGMENT_DESCRIPTOR = 0x00D
    INVALID_NUMBER_OF_SGL_DESCRIPTORS = 0x00E
    DATA_SGL_LENGTH_INVALID = 0x00F
    SGL_DESCRIPTOR_TYPE_INVALID = 0x011
    PRP_OFFSET_INVALID = 0x013
    SGL_DATA_BLOCK_GRANULARITY_INVALID = 0x01E
    LBA_OUT_OF_RANGE = 0x080
    CAPACITY_EXCEEDED = 0x081

    COMPLETION_QUEUE_INVALID = 0x100
    INVALID_QUEUE_ID = 0x101
    INVALID_QUEUE_SIZE = 0x102
    ABORT_LIMIT_EXCEEDED = 0x103
    EVENT_REQUEST_LIMIT_EXCEEDED = 0x105
    INVALID_INTERRUPT_VECTOR = 0x108
    INVALID_LOG_PAGE = 0x109
    INVALID_QUEUE_DELETION = 0x10C
    FEATURE_NOT_SAVEABLE = 0x10D
    FEATURE_NOT_CHANGEABLE = 0x10E
    FEATURE_NOT_NAMESPACE_SPECIFIC = 0x10F

    WRITE_FAULT = 0x280
    UNRECOVERED_READ_ERROR = 0x281
    COMPARE_FAILURE = 0x285


_WORTH_RETRYING = frozenset(
    {
        Status.SUCCESS,
        Status.DATA_TRANSFER_ERROR,
        Status.INTERNAL_ERROR,
        Status.ABORT_REQUESTED,
        Status.ABORTED_SQ_DELETION,
        Status.WRITE_FAULT,
        Status.UNRECOVERED_READ_ERROR,
    }
)


def status_field(status: Status, *, more: bool = False) -> int:
    """Return the 15-bit status field of a completion: SC, SCT, M and DNR.

    Do Not Retry is set for whatever would fail again: Linux tries everything else five more times.

    >>> hex(status_field(Status.INVALID_FIELD))
    '0x4002'
    """
    dnr = 0 if status in _WORTH_RETRYING else DO_NOT_RETRY
    return status | dnr | (MORE if more else 0)


class CommandFailed(OutboardError):
    """A command ends with ``status``; raised by whatever executes one.

    ``location`` is the offset of the offending byte within the submission queue entry, if one is to blame.
    """

    fault = Fault.GUEST

    def __init__(self, status: Status, sentence: str = "", *, location: int | None = None) -> None:
        super().__init__(sentence or status.name)
        self.status = status
        self.location = location
