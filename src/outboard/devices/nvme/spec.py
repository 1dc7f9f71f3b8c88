"""The numbers of the NVM Express specifications: opcodes, identifiers, register values.

NVMe Base 2.0 (figures of sections 3.1, 3.3, 5), NVM Command Set 1.0 and Zoned Namespace Command Set 1.1.
Nothing here does anything.
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
    NAMESPACE_MANAGEMENT = 0x0D
    FIRMWARE_COMMIT = 0x10
    FIRMWARE_DOWNLOAD = 0x11
    DEVICE_SELF_TEST = 0x14
    NAMESPACE_ATTACHMENT = 0x15
    KEEP_ALIVE = 0x18
    DIRECTIVE_SEND = 0x19
    DIRECTIVE_RECEIVE = 0x1A
    DOORBELL_BUFFER_CONFIG = 0x7C
    FORMAT_NVM = 0x80
    SECURITY_SEND = 0x81
    SECURITY_RECEIVE = 0x82
    SANITIZE = 0x84
    GET_LBA_STATUS = 0x86


class IoOpcode(IntEnum):
    """Opcodes of the NVM, Zoned Namespace and I/O management command sets."""

    FLUSH = 0x00
    WRITE = 0x01
    READ = 0x02
    WRITE_UNCORRECTABLE = 0x04
    COMPARE = 0x05
    WRITE_ZEROES = 0x08
    DATASET_MANAGEMENT = 0x09
    VERIFY = 0x0C
    RESERVATION_REGISTER = 0x0D
    RESERVATION_REPORT = 0x0E
    RESERVATION_ACQUIRE = 0x11
    IO_MANAGEMENT_RECEIVE = 0x12
    RESERVATION_RELEASE = 0x15
    COPY = 0x19
    IO_MANAGEMENT_SEND = 0x1D
    ZONE_MANAGEMENT_SEND = 0x79
    ZONE_MANAGEMENT_RECEIVE = 0x7A
    ZONE_APPEND = 0x7D


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
    FORMAT_NAMESPACE = 0x09
    CSI_FORMAT_NAMESPACE = 0x0A
    ALLOCATED_NAMESPACES = 0x10
    ALLOCATED_NAMESPACE = 0x11
    NAMESPACE_CONTROLLERS = 0x12
    CONTROLLERS = 0x13
    PRIMARY_CAPABILITIES = 0x14
    SECONDARY_CONTROLLERS = 0x15
    UUIDS = 0x17
    ENDURANCE_GROUPS = 0x19
    CSI_ALLOCATED_NAMESPACES = 0x1A
    CSI_ALLOCATED_NAMESPACE = 0x1B
    COMMAND_SETS = 0x1C


class Csi(IntEnum):
    """Command set identifiers."""

    NVM = 0x00
    ZONED = 0x02


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
    AUTONOMOUS_POWER_STATES = 0x0C
    TIMESTAMP = 0x0E
    KEEP_ALIVE_TIMER = 0x0F
    HOST_THERMAL_MANAGEMENT = 0x10
    LBA_STATUS_ATTRIBUTES = 0x15
    HOST_BEHAVIOR_SUPPORT = 0x16
    SANITIZE_CONFIGURATION = 0x17
    COMMAND_SET_PROFILE = 0x19
    FLEXIBLE_DATA_PLACEMENT = 0x1D
    PLACEMENT_EVENTS = 0x1E
    SOFTWARE_PROGRESS_MARKER = 0x80
    HOST_IDENTIFIER = 0x81
    RESERVATION_NOTIFICATION_MASK = 0x82
    RESERVATION_PERSISTENCE = 0x83
    NAMESPACE_WRITE_PROTECTION = 0x84


class SanitizeAction(IntEnum):
    """SANACT: what Sanitize is to do."""

    EXIT_FAILURE_MODE = 1
    BLOCK_ERASE = 2
    OVERWRITE = 3
    CRYPTO_ERASE = 4


class SanitizeStatus(IntEnum):
    """SSTAT: what became of the last sanitize operation."""

    NEVER = 0
    COMPLETED = 1
    IN_PROGRESS = 2
    FAILED = 3


class SelfTest(IntEnum):
    """STC: what Device Self-test is to do."""

    SHORT = 0x1
    EXTENDED = 0x2
    VENDOR = 0xE
    ABORT = 0xF


class SelfTestResult(IntEnum):
    """How a device self-test operation ended."""

    PASSED = 0x0
    ABORTED = 0x1
    RESET = 0x2
    NAMESPACE_REMOVED = 0x3
    FORMATTED = 0x4
    FATAL = 0x5
    FAILED_UNKNOWN_SEGMENT = 0x6
    FAILED_SEGMENT = 0x7
    ABORTED_UNKNOWN = 0x8
    SANITIZED = 0x9
    UNUSED = 0xF


class CommitAction(IntEnum):
    """CA: what Firmware Commit is to do with a slot."""

    REPLACE = 0
    REPLACE_AND_ACTIVATE = 1
    ACTIVATE = 2
    ACTIVATE_NOW = 3


class WriteProtection(IntEnum):
    """What Namespace Write Protection Config is set to."""

    NONE = 0
    WRITE_PROTECT = 1
    UNTIL_POWER_CYCLE = 2
    PERMANENT = 3


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
    SELF_TEST = 0x06
    HOST_TELEMETRY = 0x07
    CONTROLLER_TELEMETRY = 0x08
    ENDURANCE_GROUP = 0x09
    NAMESPACE_ACCESS = 0x0C
    PERSISTENT_EVENTS = 0x0D
    LBA_STATUS = 0x0E
    FEATURE_EFFECTS = 0x12
    MANAGEMENT_EFFECTS = 0x13
    PLACEMENT_CONFIGURATIONS = 0x20
    RECLAIM_UNIT_HANDLES = 0x21
    PLACEMENT_STATISTICS = 0x22
    PLACEMENT_EVENTS = 0x23
    RESERVATION_NOTIFICATION = 0x80
    SANITIZE_STATUS = 0x81
    CHANGED_ZONES = 0xBF


class EventType(IntEnum):
    """Types of asynchronous events."""

    ERROR = 0
    HEALTH = 1
    NOTICE = 2
    IMMEDIATE = 3
    IO_SPECIFIC = 6


class ErrorEvent(IntEnum):
    """What an event of type ERROR reports."""

    INVALID_DOORBELL_REGISTER = 0x00
    INVALID_DOORBELL_VALUE = 0x01
    DIAGNOSTIC_FAILURE = 0x02
    PERSISTENT_INTERNAL_ERROR = 0x03
    TRANSIENT_INTERNAL_ERROR = 0x04
    FIRMWARE_IMAGE_LOAD_ERROR = 0x05


class HealthEvent(IntEnum):
    """What an event of type HEALTH reports."""

    RELIABILITY = 0x00
    TEMPERATURE = 0x01
    SPARE = 0x02


class NoticeEvent(IntEnum):
    """What an event of type NOTICE reports."""

    NAMESPACE_ATTRIBUTE_CHANGED = 0x00
    FIRMWARE_ACTIVATION_STARTING = 0x01
    TELEMETRY_CHANGED = 0x02
    NAMESPACE_ACCESS_CHANGED = 0x03
    LBA_STATUS_ALERT = 0x05
    ENDURANCE_GROUP_EVENT = 0x06
    ZONE_DESCRIPTOR_CHANGED = 0xEF


class IoEvent(IntEnum):
    """What an event of type IO_SPECIFIC reports."""

    RESERVATION = 0x00
    SANITIZE_COMPLETED = 0x01
    SANITIZE_COMPLETED_UNEXPECTED_DEALLOCATION = 0x02


class PersistentEvent(IntEnum):
    """Types of persistent events."""

    HEALTH_SNAPSHOT = 0x01
    FIRMWARE_COMMIT = 0x02
    TIMESTAMP_CHANGE = 0x03
    POWER_ON_OR_RESET = 0x04
    HARDWARE_ERROR = 0x05
    CHANGE_NAMESPACE = 0x06
    FORMAT_START = 0x07
    FORMAT_COMPLETION = 0x08
    SANITIZE_START = 0x09
    SANITIZE_COMPLETION = 0x0A
    SET_FEATURE = 0x0B
    TELEMETRY_CREATED = 0x0C
    THERMAL_EXCURSION = 0x0D


class HardwareError(IntEnum):
    """What a persistent event of type HARDWARE_ERROR reports."""

    UNSAFE_SHUTDOWN = 0x08
    CONTROLLER_FATAL = 0x09
    MEDIA = 0x0A


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
