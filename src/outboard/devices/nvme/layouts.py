"""Data structures a host reads, as the specification prints them: name, offset, format.

One table serves both ends: the controller encodes with it, a driver and `outboard identify` decode.
Figures of NVMe Base 2.0: 275 (Identify Controller), 206 (SMART / Health), 205 (Error Information),
207 (Firmware Slot); NVM Command Set 1.0: 97 (Identify Namespace), 102 (I/O command set controller).
"""

import struct
from collections.abc import Mapping
from types import MappingProxyType

Value = int | bytes


class Layout:
    r"""A structure of ``size`` bytes; each field is ``(offset, format)``.

    The format is one of struct's (little endian), or ``"u128"`` for a 16-byte number.

    >>> pair = Layout(8, first=(0, "H"), name=(4, "4s"))
    >>> pair.encode(first=5, name=b"ab")
    b'\x05\x00\x00\x00ab\x00\x00'
    >>> pair.decode(pair.encode(first=5))
    {'first': 5, 'name': b'\x00\x00\x00\x00'}
    """

    def __init__(self, size: int, **fields: tuple[int, str]) -> None:
        self.size = size
        self.fields: Mapping[str, tuple[int, str]] = MappingProxyType(fields)

    def encode(self, **values: Value) -> bytes:
        """Return the structure with these values, everything else zero."""
        data = bytearray(self.size)
        for name, value in values.items():
            offset, kind = self.fields[name]
            if kind == "u128" and isinstance(value, int):
                data[offset : offset + 16] = value.to_bytes(16, "little")
            else:
                struct.pack_into("<" + kind, data, offset, value)
        return bytes(data)

    def decode(self, data: bytes | memoryview) -> dict[str, Value]:
        """Return the value of each field of ``data``, which holds at least ``size`` bytes."""
        values: dict[str, Value] = {}
        for name, (offset, kind) in self.fields.items():
            if kind == "u128":
                values[name] = int.from_bytes(data[offset : offset + 16], "little")
            else:
                values[name] = struct.unpack_from("<" + kind, data, offset)[0]
        return values


IDENTIFY_CONTROLLER = Layout(
    4096,
    vid=(0, "H"),
    ssvid=(2, "H"),
    sn=(4, "20s"),
    mn=(24, "40s"),
    fr=(64, "8s"),
    rab=(72, "B"),
    ieee=(73, "3s"),
    cmic=(76, "B"),
    mdts=(77, "B"),
    cntlid=(78, "H"),
    ver=(80, "I"),
    rtd3r=(84, "I"),
    rtd3e=(88, "I"),
    oaes=(92, "I"),
    ctratt=(96, "I"),
    rrls=(100, "H"),
    cntrltype=(111, "B"),
    fguid=(112, "16s"),
    crdt1=(128, "H"),
    crdt2=(130, "H"),
    crdt3=(132, "H"),
    oacs=(256, "H"),
    acl=(258, "B"),
    aerl=(259, "B"),
    frmw=(260, "B"),
    lpa=(261, "B"),
    elpe=(262, "B"),
    npss=(263, "B"),
    avscc=(264, "B"),
    apsta=(265, "B"),
    wctemp=(266, "H"),
    cctemp=(268, "H"),
    mtfa=(270, "H"),
    hmpre=(272, "I"),
    hmmin=(276, "I"),
    tnvmcap=(280, "u128"),
    unvmcap=(296, "u128"),
    rpmbs=(312, "I"),
    edstt=(316, "H"),
    dsto=(318, "B"),
    fwug=(319, "B"),
    kas=(320, "H"),
    hctma=(322, "H"),
    mntmt=(324, "H"),
    mxtmt=(326, "H"),
    sanicap=(328, "I"),
    hmminds=(332, "I"),
    hmmaxd=(336, "H"),
    nsetidmax=(338, "H"),
    endgidmax=(340, "H"),
    anatt=(342, "B"),
    anacap=(343, "B"),
    anagrpmax=(344, "I"),
    nanagrpid=(348, "I"),
    pels=(352, "I"),
    domainid=(356, "H"),
    megcap=(368, "u128"),
    sqes=(512, "B"),
    cqes=(513, "B"),
    maxcmd=(514, "H"),
    nn=(516, "I"),
    oncs=(520, "H"),
    fuses=(522, "H"),
    fna=(524, "B"),
    vwc=(525, "B"),
    awun=(526, "H"),
    awupf=(528, "H"),
    icsvscc=(530, "B"),
    nwpc=(531, "B"),
    acwu=(532, "H"),
    ocfs=(534, "H"),
    sgls=(536, "I"),
    mnan=(540, "I"),
    subnqn=(768, "256s"),
    psd0=(2048, "32s"),
    psd1=(2080, "32s"),
    psd2=(2112, "32s"),
    psd3=(2144, "32s"),
)

IDENTIFY_NAMESPACE = Layout(
    4096,
    nsze=(0, "Q"),
    ncap=(8, "Q"),
    nuse=(16, "Q"),
    nsfeat=(24, "B"),
    nlbaf=(25, "B"),
    flbas=(26, "B"),
    mc=(27, "B"),
    dpc=(28, "B"),
    dps=(29, "B"),
    nmic=(30, "B"),
    rescap=(31, "B"),
    fpi=(32, "B"),
    dlfeat=(33, "B"),
    nawun=(34, "H"),
    nawupf=(36, "H"),
    nacwu=(38, "H"),
    nabsn=(40, "H"),
    nabo=(42, "H"),
    nabspf=(44, "H"),
    noiob=(46, "H"),
    nvmcap=(48, "u128"),
    npwg=(64, "H"),
    npwa=(66, "H"),
    npdg=(68, "H"),
    npda=(70, "H"),
    nows=(72, "H"),
    mssrl=(74, "H"),
    mcl=(76, "I"),
    msrc=(80, "B"),
    anagrpid=(92, "I"),
    nsattr=(99, "B"),
    nvmsetid=(100, "H"),
    endgid=(102, "H"),
    nguid=(104, "16s"),
    eui64=(120, "8s"),
    lbafs=(128, "256s"),
)

NAMESPACE_MANAGEMENT = Layout(
    4096,
    nsze=(0, "Q"),
    ncap=(8, "Q"),
    flbas=(26, "B"),
    dps=(29, "B"),
    nmic=(30, "B"),
    anagrpid=(92, "I"),
    nvmsetid=(100, "H"),
    endgid=(102, "H"),
)

PRIMARY_CAPABILITIES = Layout(4096, cntlid=(0, "H"), portid=(2, "H"), crt=(4, "B"))

IDENTIFY_NVM_CONTROLLER = Layout(
    4096, vsl=(0, "B"), wzsl=(1, "B"), wusl=(2, "B"), dmrl=(3, "B"), dmrsl=(4, "I"), dmsl=(8, "Q")
)

IDENTIFY_NVM_NAMESPACE = Layout(4096, lbstm=(0, "Q"), pic=(8, "B"), pifa=(9, "B"), elbafs=(12, "256s"))

IDENTIFY_INDEPENDENT_NAMESPACE = Layout(
    4096,
    nsfeat=(0, "B"),
    nmic=(1, "B"),
    rescap=(2, "B"),
    fpi=(3, "B"),
    anagrpid=(4, "I"),
    nsattr=(8, "B"),
    nvmsetid=(10, "H"),
    endgid=(12, "H"),
    nstat=(14, "B"),
)

HEALTH_LOG = Layout(
    512,
    critical_warning=(0, "B"),
    temperature=(1, "H"),
    available_spare=(3, "B"),
    spare_threshold=(4, "B"),
    percentage_used=(5, "B"),
    data_units_read=(32, "u128"),
    data_units_written=(48, "u128"),
    host_read_commands=(64, "u128"),
    host_write_commands=(80, "u128"),
    busy_minutes=(96, "u128"),
    power_cycles=(112, "u128"),
    power_on_hours=(128, "u128"),
    unsafe_shutdowns=(144, "u128"),
    media_errors=(160, "u128"),
    error_log_entries=(176, "u128"),
    warning_temperature_minutes=(192, "I"),
    critical_temperature_minutes=(196, "I"),
    light_throttlings=(216, "I"),
    heavy_throttlings=(220, "I"),
    light_throttling_seconds=(224, "I"),
    heavy_throttling_seconds=(228, "I"),
)

ERROR_ENTRY = Layout(
    64,
    error_count=(0, "Q"),
    sqid=(8, "H"),
    cid=(10, "H"),
    status=(12, "H"),
    parameter_location=(14, "H"),
    lba=(16, "Q"),
    nsid=(24, "I"),
    vendor_log=(28, "B"),
    transport_type=(29, "B"),
    csi=(30, "B"),
    opcode=(31, "B"),
    command_specific=(32, "Q"),
    transport_specific=(40, "H"),
    version=(63, "B"),
)

ENDURANCE_GROUP_LOG = Layout(
    512,
    critical_warning=(0, "B"),
    features=(1, "B"),
    available_spare=(3, "B"),
    spare_threshold=(4, "B"),
    percentage_used=(5, "B"),
    domain=(6, "H"),
    endurance_estimate=(32, "u128"),
    data_units_read=(48, "u128"),
    data_units_written=(64, "u128"),
    media_units_written=(80, "u128"),
    host_read_commands=(96, "u128"),
    host_write_commands=(112, "u128"),
    media_errors=(128, "u128"),
    error_log_entries=(144, "u128"),
    total_capacity=(160, "u128"),
    unallocated_capacity=(176, "u128"),
)

TELEMETRY_HEADER = Layout(
    512,
    lid=(0, "B"),
    ieee=(5, "3s"),
    last_block_1=(8, "H"),
    last_block_2=(10, "H"),
    last_block_3=(12, "H"),
    host_generation=(381, "B"),
    available=(382, "B"),
    generation=(383, "B"),
    reason=(384, "128s"),
)

PERSISTENT_EVENT_HEADER = Layout(
    512,
    lid=(0, "B"),
    events=(4, "I"),
    length=(8, "Q"),
    revision=(16, "B"),
    header_length=(18, "H"),
    timestamp=(20, "8s"),
    power_on_hours=(28, "u128"),
    power_cycles=(44, "Q"),
    vid=(52, "H"),
    ssvid=(54, "H"),
    sn=(56, "20s"),
    mn=(76, "40s"),
    subnqn=(116, "256s"),
    generation=(372, "H"),
    context=(374, "I"),
    supported=(480, "32s"),
)

PERSISTENT_EVENT = Layout(
    24,
    type=(0, "B"),
    revision=(1, "B"),
    header_length=(2, "B"),
    cntlid=(4, "H"),
    timestamp=(6, "8s"),
    vendor_length=(20, "H"),
    length=(22, "H"),
)

POWER_ON_EVENT = Layout(
    44,
    firmware=(0, "8s"),
    cntlid=(8, "H"),
    activation=(10, "B"),
    in_progress=(11, "B"),
    power_cycles=(24, "I"),
    since_power_on=(28, "Q"),
    timestamp=(36, "8s"),
)

FIRMWARE_COMMIT_EVENT = Layout(
    22,
    old=(0, "8s"),
    new=(8, "8s"),
    action=(16, "B"),
    slot=(17, "B"),
    status_code_type=(18, "B"),
    status_code=(19, "B"),
)

CHANGE_NAMESPACE_EVENT = Layout(
    48,
    cdw10=(0, "I"),
    nsze=(8, "Q"),
    ncap=(24, "Q"),
    flbas=(32, "B"),
    dps=(33, "B"),
    nmic=(34, "B"),
    anagrpid=(36, "I"),
    nsid=(44, "I"),
)

FORMAT_START_EVENT = Layout(12, nsid=(0, "I"), fna=(4, "B"), cdw10=(8, "I"))

FORMAT_COMPLETION_EVENT = Layout(
    12, nsid=(0, "I"), smallest_progress=(4, "B"), failed=(5, "B"), status=(8, "I")
)

SANITIZE_START_EVENT = Layout(12, sanicap=(0, "I"), cdw10=(4, "I"), cdw11=(8, "I"))

SANITIZE_COMPLETION_EVENT = Layout(8, sprog=(0, "H"), sstat=(2, "H"))

FIRMWARE_LOG = Layout(512, active=(0, "B"), **{f"slot{number}": (8 * number, "8s") for number in range(1, 8)})

SELF_TEST_LOG = Layout(564, operation=(0, "B"), completion=(1, "B"), results=(4, "560s"))

SELF_TEST_RESULT = Layout(
    28,
    status=(0, "B"),
    segment=(1, "B"),
    valid=(2, "B"),
    power_on_hours=(4, "Q"),
    nsid=(12, "I"),
    failing_lba=(16, "Q"),
    status_code_type=(24, "B"),
    status_code=(25, "B"),
)

SANITIZE_LOG = Layout(
    512,
    sprog=(0, "H"),
    sstat=(2, "H"),
    scdw10=(4, "I"),
    overwrite_time=(8, "I"),
    block_erase_time=(12, "I"),
    crypto_erase_time=(16, "I"),
    overwrite_time_kept=(20, "I"),
    block_erase_time_kept=(24, "I"),
    crypto_erase_time_kept=(28, "I"),
)
