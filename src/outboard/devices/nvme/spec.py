"""The numbers of the NVM Express specifications: opcodes, identifiers, register values.

NVMe Base 2.0 (figures of sections 3.1, 3.3, 5) and NVM Command Set 1.0. Nothing here does anything.
"""

from enum import IntEnum

VERSION = 0x0002_0000
"""VS, and Identify's VER: 2.0.0."""

PAGE = 4096
"""The memory page size: the only one offered (CAP.MPSMIN = CAP.MPSMAX = 0)."""

SQE_SIZE = 64
CQE_SIZE = 16

BROADCAST = 0xFFFF_FFFF
"""The namespace identifier that means all of them."""

NSSR_KEY = 0x4E56_4D65
"""What a host writes to NSSR to reset the whole subsystem: "NVMe"."""


class AdminOpcode(IntEnum):
    """Opcodes of the admin queue."""

    DELETE_IO_SQ = 0x00
    CREATE_IO_SQ = 0x01
    GET_LOG_PAGE = 0x02
    DELETE_IO_CQ = 0x04
    CREATE_IO_CQ = 0x05
    IDENTIFY = 0x06
    ABORT = 0x08
    SET_FEATURES = 0x09
    GET_FEATURES = 0x0A
    ASYNC_EVENT_REQUEST = 0x0C
    KEEP_ALIVE = 0x18
    DOORBELL_BUFFER_CONFIG = 0x7C


class IoOpcode(IntEnum):
    """Opcodes of the NVM command set."""

    FLUSH = 0x00
    WRITE = 0x01
    READ = 0x02
    COMPARE = 0x05
    WRITE_ZEROES = 0x08
    DATASET_MANAGEMENT = 0x09


class Cns(IntEnum):
    """What Identify asks for (Controller or Namespace Structure)."""

    NAMESPACE = 0x00
    CONTROLLER = 0x01
    ACTIVE_NAMESPACES = 0x02
    NAMESPACE_DESCRIPTORS = 0x03
    CSI_NAMESPACE = 0x05
    CSI_CONTROLLER = 0x06
    CSI_ACTIVE_NAMESPACES = 0x07
    CSI_INDEPENDENT_NAMESPACE = 0x08


class Csi(IntEnum):
    """Command set identifiers."""

    NVM = 0x00


class FeatureId(IntEnum):
    """Feature identifiers."""

    ARBITRATION = 0x01
    POWER_MANAGEMENT = 0x02
    TEMPERATURE_THRESHOLD = 0x04
    ERROR_RECOVERY = 0x05
    VOLATILE_WRITE_CACHE = 0x06
    NUMBER_OF_QUEUES = 0x07
    INTERRUPT_COALESCING = 0x08
    INTERRUPT_VECTOR_CONFIGURATION = 0x09
    WRITE_ATOMICITY = 0x0A
    ASYNC_EVENT_CONFIGURATION = 0x0B
    TIMESTAMP = 0x0E
    KEEP_ALIVE_TIMER = 0x0F
    HOST_BEHAVIOR_SUPPORT = 0x16


class Select(IntEnum):
    """Which value of a feature Get Features returns."""

    CURRENT = 0
    DEFAULT = 1
    SAVED = 2
    CAPABILITIES = 3


class LogId(IntEnum):
    """Log page identifiers."""

    SUPPORTED = 0x00
    ERROR_INFORMATION = 0x01
    HEALTH = 0x02
    FIRMWARE_SLOT = 0x03
    CHANGED_NAMESPACES = 0x04
    COMMANDS_EFFECTS = 0x05


class EventType(IntEnum):
    """Types of asynchronous events."""

    ERROR = 0
    HEALTH = 1
    NOTICE = 2


class ErrorEvent(IntEnum):
    """What an event of type ERROR reports."""

    INVALID_DOORBELL_REGISTER = 0x00
    INVALID_DOORBELL_VALUE = 0x01


class NoticeEvent(IntEnum):
    """What an event of type NOTICE reports."""

    NAMESPACE_ATTRIBUTE_CHANGED = 0x00


class Shutdown(IntEnum):
    """CC.SHN: what the host asks for."""

    NONE = 0
    NORMAL = 1
    ABRUPT = 2


class ShutdownStatus(IntEnum):
    """CSTS.SHST: how far the shutdown is."""

    NORMAL = 0
    OCCURRING = 1
    COMPLETE = 2
