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
    ABORTED_POWER_LOSS = 0x005
    INTERNAL_ERROR = 0x006
    ABORT_REQUESTED = 0x007
    ABORTED_SQ_DELETION = 0x008
    ABORTED_FAILED_FUSED = 0x009
    ABORTED_MISSING_FUSED = 0x00A
    INVALID_NAMESPACE = 0x00B
    COMMAND_SEQUENCE_ERROR = 0x00C
    INVALID_SGL_SEGMENT_DESCRIPTOR = 0x00D
    INVALID_NUMBER_OF_SGL_DESCRIPTORS = 0x00E
    DATA_SGL_LENGTH_INVALID = 0x00F
    METADATA_SGL_LENGTH_INVALID = 0x010
    SGL_DESCRIPTOR_TYPE_INVALID = 0x011
    INVALID_USE_OF_CONTROLLER_MEMORY = 0x012
    PRP_OFFSET_INVALID = 0x013
    ATOMIC_WRITE_UNIT_EXCEEDED = 0x014
    OPERATION_DENIED = 0x015
    SGL_OFFSET_INVALID = 0x016
    HOST_IDENTIFIER_INCONSISTENT = 0x018
    KEEP_ALIVE_EXPIRED = 0x019
    KEEP_ALIVE_INVALID = 0x01A
    ABORTED_PREEMPTED = 0x01B
    SANITIZE_FAILED = 0x01C
    SANITIZE_IN_PROGRESS = 0x01D
    SGL_DATA_BLOCK_GRANULARITY_INVALID = 0x01E
    NAMESPACE_WRITE_PROTECTED = 0x020
    COMMAND_INTERRUPTED = 0x021
    TRANSIENT_TRANSPORT_ERROR = 0x022
    FDP_DISABLED = 0x029
    INVALID_PLACEMENT_HANDLE_LIST = 0x02A
    LBA_OUT_OF_RANGE = 0x080
    CAPACITY_EXCEEDED = 0x081
    NAMESPACE_NOT_READY = 0x082
    RESERVATION_CONFLICT = 0x083
    FORMAT_IN_PROGRESS = 0x084

    COMPLETION_QUEUE_INVALID = 0x100
    INVALID_QUEUE_ID = 0x101
    INVALID_QUEUE_SIZE = 0x102
    ABORT_LIMIT_EXCEEDED = 0x103
    EVENT_REQUEST_LIMIT_EXCEEDED = 0x105
    INVALID_FIRMWARE_SLOT = 0x106
    INVALID_FIRMWARE_IMAGE = 0x107
    INVALID_INTERRUPT_VECTOR = 0x108
    INVALID_LOG_PAGE = 0x109
    INVALID_FORMAT = 0x10A
    FIRMWARE_NEEDS_RESET = 0x10B
    INVALID_QUEUE_DELETION = 0x10C
    FEATURE_NOT_SAVEABLE = 0x10D
    FEATURE_NOT_CHANGEABLE = 0x10E
    FEATURE_NOT_NAMESPACE_SPECIFIC = 0x10F
    FIRMWARE_NEEDS_SUBSYSTEM_RESET = 0x110
    FIRMWARE_NEEDS_CONTROLLER_RESET = 0x111
    FIRMWARE_ACTIVATION_PROHIBITED = 0x113
    OVERLAPPING_RANGE = 0x114
    NAMESPACE_INSUFFICIENT_CAPACITY = 0x115
    NAMESPACE_ID_UNAVAILABLE = 0x116
    NAMESPACE_ALREADY_ATTACHED = 0x118
    NAMESPACE_IS_PRIVATE = 0x119
    NAMESPACE_NOT_ATTACHED = 0x11A
    THIN_PROVISIONING_NOT_SUPPORTED = 0x11B
    CONTROLLER_LIST_INVALID = 0x11C
    SELF_TEST_IN_PROGRESS = 0x11D
    INVALID_CONTROLLER_ID = 0x11F
    ANA_GROUP_INVALID = 0x124
    ANA_ATTACH_FAILED = 0x125
    COMMAND_SET_NOT_SUPPORTED = 0x129
    COMMAND_SET_REJECTED = 0x12B

    CONFLICTING_ATTRIBUTES = 0x180
    INVALID_PROTECTION_INFORMATION = 0x181
    WRITE_TO_READ_ONLY_RANGE = 0x182
    COMMAND_SIZE_LIMIT_EXCEEDED = 0x183
    INCOMPATIBLE_NAMESPACE_OR_FORMAT = 0x185
    FAST_COPY_NOT_POSSIBLE = 0x186
    OVERLAPPING_IO_RANGE = 0x187
    INSUFFICIENT_RESOURCES = 0x189
    INVALID_ZONE_OPERATION = 0x1B6
    ZRWA_RESOURCES_UNAVAILABLE = 0x1B7
    ZONED_BOUNDARY_ERROR = 0x1B8
    ZONE_IS_FULL = 0x1B9
    ZONE_IS_READ_ONLY = 0x1BA
    ZONE_IS_OFFLINE = 0x1BB
    ZONE_INVALID_WRITE = 0x1BC
    TOO_MANY_ACTIVE_ZONES = 0x1BD
    TOO_MANY_OPEN_ZONES = 0x1BE
    INVALID_ZONE_STATE_TRANSITION = 0x1BF

    WRITE_FAULT = 0x280
    UNRECOVERED_READ_ERROR = 0x281
    GUARD_CHECK_ERROR = 0x282
    APPLICATION_TAG_CHECK_ERROR = 0x283
    REFERENCE_TAG_CHECK_ERROR = 0x284
    COMPARE_FAILURE = 0x285
    ACCESS_DENIED = 0x286
    DEALLOCATED_OR_UNWRITTEN_BLOCK = 0x287

    INTERNAL_PATH_ERROR = 0x300
    ANA_PERSISTENT_LOSS = 0x301
    ANA_INACCESSIBLE = 0x302
    ANA_TRANSITION = 0x303


_WORTH_RETRYING = frozenset(
    {
        Status.SUCCESS,
        Status.DATA_TRANSFER_ERROR,
        Status.INTERNAL_ERROR,
        Status.ABORT_REQUESTED,
        Status.ABORTED_SQ_DELETION,
        Status.ABORTED_POWER_LOSS,
        Status.ABORTED_FAILED_FUSED,
        Status.COMMAND_INTERRUPTED,
        Status.SANITIZE_IN_PROGRESS,
        Status.FORMAT_IN_PROGRESS,
        Status.SELF_TEST_IN_PROGRESS,
        Status.NAMESPACE_NOT_READY,
        Status.INTERNAL_PATH_ERROR,
        Status.ANA_PERSISTENT_LOSS,
        Status.ANA_INACCESSIBLE,
        Status.ANA_TRANSITION,
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

    ``location`` is the offset of the offending byte within the submission queue entry, if one is to blame,
    and ``bit`` the lowest bit in it.
    ``field`` is the 15-bit status field to be told, where it is not the one that follows from ``status``.
    ``lba`` is the block to blame, if it is not the first; ``result`` is dword 0 of the completion.
    """

    fault = Fault.GUEST

    def __init__(
        self,
        status: Status,
        sentence: str = "",
        *,
        location: int | None = None,
        bit: int = 0,
        field: int | None = None,
        lba: int | None = None,
        result: int = 0,
    ) -> None:
        super().__init__(sentence or status.name)
        self.status = status
        self.location = location
        self.bit = bit
        self.field = field
        self.lba = lba
        self.result = result
