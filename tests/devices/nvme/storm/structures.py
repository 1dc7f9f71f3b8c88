"""Valid commands, each with the data structure it brings along: what is then changed."""

import random
import struct
from collections.abc import Callable

from outboard.devices.nvme.command import Command
from outboard.devices.nvme.features import FEATURES
from outboard.devices.nvme.layouts import NAMESPACE_MANAGEMENT
from outboard.devices.nvme.logs import LOG_PAGES
from outboard.devices.nvme.namespace import Namespace
from outboard.devices.nvme.spec import BROADCAST, AdminOpcode, Cns, FeatureId, IoOpcode
from outboard.devices.nvme.state import State
from tests.devices.nvme.driver import PAGE
from tests.devices.nvme.storm.memory import PRP, SGL, SGL_METADATA, Aim

KEYS = (0, 1, 2, 3, 1 << 63)
IMAGE = b"outboard-firmware 1.1\n"
_RW = frozenset({IoOpcode.READ, IoOpcode.WRITE, IoOpcode.COMPARE, IoOpcode.ZONE_APPEND})
_WITHOUT_DATA = frozenset({IoOpcode.WRITE_ZEROES, IoOpcode.VERIFY, IoOpcode.WRITE_UNCORRECTABLE})
_SENDS = (1, 2, 3, 4, 5, 0x10, 0x11)

Dwords = tuple[int, ...]


class Structures:
    """Makes valid commands for the controller of ``state``, their data where ``aim`` finds a place."""

    def __init__(self, chance: random.Random, state: State, aim: Aim) -> None:
        self.chance, self.state, self.aim = chance, state, aim
        self._admin: dict[int, Callable[[], Command]] = {
            AdminOpcode.DELETE_IO_SQ: self._delete_queue,
            AdminOpcode.DELETE_IO_CQ: self._delete_queue,
            AdminOpcode.CREATE_IO_SQ: self._create_sq,
            AdminOpcode.CREATE_IO_CQ: self._create_cq,
            AdminOpcode.GET_LOG_PAGE: self._get_log_page,
            AdminOpcode.IDENTIFY: self._identify,
            AdminOpcode.ABORT: lambda: self._dwords(
                self.chance.randrange(4) | self.chance.randrange(64) << 16
            ),
            AdminOpcode.SET_FEATURES: self._set_features,
            AdminOpcode.GET_FEATURES: self._get_features,
            AdminOpcode.NAMESPACE_MANAGEMENT: self._namespace_management,
            AdminOpcode.NAMESPACE_ATTACHMENT: self._namespace_attachment,
            AdminOpcode.FIRMWARE_COMMIT: self._firmware_commit,
            AdminOpcode.FIRMWARE_DOWNLOAD: self._firmware_download,
            AdminOpcode.DEVICE_SELF_TEST: self._self_test,
            AdminOpcode.DIRECTIVE_SEND: self._directive,
            AdminOpcode.DIRECTIVE_RECEIVE: self._directive,
            AdminOpcode.FORMAT_NVM: self._format,
            AdminOpcode.SECURITY_SEND: self._security,
            AdminOpcode.SECURITY_RECEIVE: self._security,
            AdminOpcode.SANITIZE: self._sanitize,
        }
        self._io: dict[int, Callable[[Namespace], Command]] = {
            IoOpcode.DATASET_MANAGEMENT: self._dataset_management,
            IoOpcode.COPY: self._copy,
            IoOpcode.RESERVATION_REGISTER: self._reservation,
            IoOpcode.RESERVATION_ACQUIRE: self._reservation,
            IoOpcode.RESERVATION_RELEASE: self._reservation,
            IoOpcode.RESERVATION_REPORT: self._reservation_report,
            IoOpcode.IO_MANAGEMENT_RECEIVE: self._management_receive,
            IoOpcode.IO_MANAGEMENT_SEND: self._management_send,
            IoOpcode.ZONE_MANAGEMENT_SEND: self._zone_send,
            IoOpcode.ZONE_MANAGEMENT_RECEIVE: self._zone_receive,
        }

    def admin(self, opcode: int) -> Command:
        """A valid admin command; of an opcode that is not known: any."""
        command = self._admin.get(opcode, lambda: self._dwords(self.chance.getrandbits(32)))()
        command.opcode = opcode
        return command

    def io(self, opcode: int, space: Namespace) -> Command:
        """A valid I/O command for a namespace, whose identifier is to be filled in."""
        if opcode in _RW:
            command = self._rw(opcode, space)
        elif opcode in _WITHOUT_DATA:
            command = self._without_data(space)
        elif opcode in self._io:
            command = self._io[opcode](space)
        else:
            command = self._dwords(self.chance.getrandbits(32))
        command.opcode = opcode
        return command

    def _dwords(self, *dwords: int, size: int = PAGE, data: bytes = b"", nsid: int = 0) -> Command:
        """A command with these dwords from the tenth on, and PRPs for ``size`` bytes, that hold ``data``."""
        pointers = self.aim.contiguous(max(1, min(size, self.state.limits.transfer * 2)))
        if data:
            self.aim.ram.write(pointers["prp1"], data)
        named = {f"cdw{number}": dword & 0xFFFF_FFFF for number, dword in enumerate(dwords, 10)}
        return Command(0, nsid=nsid, **pointers, **named)

    def _nsid(self) -> int:
        most = self.state.subsystem.most_namespaces
        return self.chance.choice((0, 1, BROADCAST, *self.state.subsystem.namespaces, most, most + 1))

    def _bits(self, *choices: int) -> int:
        return self.chance.choice(choices)

    # Admin commands.

    def _delete_queue(self) -> Command:
        return self._dwords(self._bits(0, 3, 3, 4, 5, 1, 2))

    def _create_cq(self) -> Command:
        size = self._bits(1, 1, 3, 63, 1023, 1024, 0, 0xFFFF)
        interrupts = self._bits(0, 2) | self.chance.randrange(5) << 16
        return self._dwords(self._bits(3, 4, 5, 1) | size << 16, 1 | interrupts)

    def _create_sq(self) -> Command:
        size = self._bits(1, 1, 3, 63, 1023, 1024, 0, 0xFFFF)
        return self._dwords(
            self._bits(3, 4, 5, 1) | size << 16, 1 | self._bits(0, 2, 4, 6) | self._bits(1, 2, 3, 4) << 16
        )

    def _get_log_page(self) -> Command:
        lid = self._bits(*LOG_PAGES, *LOG_PAGES, self.chance.randrange(256))
        size = self._bits(4, 64, 512, 512, 4096, 4100, 8192, 16384, self.state.limits.transfer)
        offset = self._bits(0, 0, 0, 0, 0, 0, 4, 64, 512, 4096, 2, 1 << 32, (1 << 64) - 4)
        dwords = size // 4 - 1
        return self._dwords(
            lid | self._bits(0, 0, 1, 2, 3, 0x7F) << 8 | self._bits(0, 1) << 15 | (dwords & 0xFFFF) << 16,
            dwords >> 16 | self._bits(0, 1, 1, 2, 0xFFFF) << 16,
            offset & 0xFFFF_FFFF,
            offset >> 32,
            self._bits(0, 0, 0, 1 << 23, 2 << 24, 1 << 24, 1),
            size=size,
            nsid=self._bits(BROADCAST, BROADCAST, 0, self._nsid()),
        )

    def _identify(self) -> Command:
        cns = self._bits(*Cns, *Cns, self.chance.randrange(256))
        return self._dwords(
            cns | self._bits(0, 0, 1, 2, 3, 0xFFFF) << 16,
            self._bits(0, 0, 1, 0xFFFF) | self._bits(0, 0, 2, 2, 1, 0xFF) << 24,
            0,
            0,
            self._bits(0, 0, 0, 1, 0x7F),
            nsid=self._nsid(),
        )

    def _feature_data(self, fid: int) -> bytes:
        if fid == FeatureId.HOST_BEHAVIOR_SUPPORT:
            return bytes(
                [self._bits(0, 1), 0, self._bits(0, 1), 0, self._bits(0, 0xC, 0xC, 0xC, 0xFF)]
            ).ljust(512, b"\0")
        if fid == FeatureId.HOST_IDENTIFIER:
            return bytes([self._bits(0, 1, 2)]) * 16
        if fid == FeatureId.AUTONOMOUS_POWER_STATES:
            return b"".join(
                bytes([self.chance.randrange(5) << 3]) + self.chance.randbytes(7) for _ in range(4)
            )
        return self.chance.randbytes(self._bits(0, 8, 256, 512))

    def _set_features(self) -> Command:
        fid = self._bits(*FEATURES, *FEATURES, self.chance.randrange(256))
        value = self._bits(0, 1, 2, 3, 1 << 16, 0x0155, 0x1FF, 0xFFFF_FFFF, self.chance.getrandbits(32))
        nsid = self._bits(0, self._nsid())
        if FEATURES[fid].namespace_specific if fid in FEATURES else False:
            nsid = self._nsid()
        elif self.chance.random() < 0.9:
            nsid = 0
        if fid == FeatureId.NAMESPACE_WRITE_PROTECTION and self.chance.random() < 0.8:
            value = self._bits(0, 0, 1)
        saves = fid not in FEATURES or FEATURES[fid].saveable or self.chance.random() < 0.1
        save = (self._bits(0, 1) if saves else 0) << 31
        return self._dwords(fid | save, value, self._bits(0, 1), data=self._feature_data(fid), nsid=nsid)

    def _get_features(self) -> Command:
        fid = self._bits(*FEATURES, *FEATURES, self.chance.randrange(256))
        return self._dwords(
            fid | self._bits(0, 0, 1, 2, 3, 4, 7) << 8, self._bits(0, 1, 0xFFFF_FFFF), nsid=self._nsid()
        )

    def _namespace_management(self) -> Command:
        sound = self.chance.random() < 0.8
        blocks = self._bits(1, 2, 63, 64, 256) if sound else self._bits(1 << 20, 1 << 61, (1 << 64) - 1, 0)
        data = NAMESPACE_MANAGEMENT.encode(
            nsze=blocks,
            ncap=blocks if sound else self._bits(blocks, 1, 0),
            flbas=self._bits(0, 0, 1, 2, 3, 4, 5, 6, 7, 0x13, 0x16) if sound else self._bits(8, 0x7F, 0xFF),
            dps=self._bits(0, 0, 0, 1, 2, 3, 9) if sound else self._bits(4, 0xFF),
            nmic=self._bits(0, 1, 1) if sound else 2,
            anagrpid=self._bits(0, 0, 1, 2, 32) if sound else 33,
            endgid=0 if sound else 1,
        )
        csi = 0 if sound else self._bits(0, 2, 1)
        select = self._bits(0, 0, 0, 1, 1) if sound else 2
        nsid = self._namespace_of_host() if select else self._bits(0, 0, self._nsid())
        return self._dwords(select, csi << 24 | csi, data=data, nsid=nsid)

    def _namespace_of_host(self) -> int:
        """One that a host has created, mostly."""
        created = [nsid for nsid, space in self.state.subsystem.namespaces.items() if space.created]
        return self.chance.choice(created) if created and self.chance.random() < 0.8 else self._nsid()

    def _namespace_attachment(self) -> Command:
        subsystem, nsid, select = self.state.subsystem, self._nsid(), self._bits(0, 0, 1)
        attached = subsystem.namespaces[nsid].attached if nsid in subsystem.namespaces else set()
        fitting = [n for n in subsystem.controllers if (n in attached) == bool(select)]
        listed = sorted(fitting)[: self._bits(1, 1, 2)]
        count = len(listed)
        if self.chance.random() < 0.2:
            listed = self.chance.choice(
                ([2, 1], [1, 2], [], [3], [0], [0xFFFF], [self.chance.getrandbits(16)])
            )
            count = self._bits(len(listed), 2047, 2048, 0xFFFF)
            select = self._bits(0, 1, 2)
        data = struct.pack(f"<{1 + len(listed)}H", count, *listed).ljust(PAGE, b"\0")
        return self._dwords(select, data=data, nsid=nsid)

    def _firmware_commit(self) -> Command:
        # Most of them without a pause for the activation.
        action = self._bits(0, 0, 1, 1, 2, 2, 4, 7, 3 if self.chance.random() < 0.2 else 0)
        return self._dwords(self._bits(1, 2, 2, 3, 3, 0, 7) | action << 3 | self._bits(0, 0, 0, 1 << 31))

    def _firmware_download(self) -> Command:
        size = self._bits(4096, 4096, 8192, 4, self.state.limits.transfer)
        data = self._bits(1, 1, 0) * IMAGE + self.chance.randbytes(16)
        offset = self._bits(0, 0, 4096, 8192, 1 << 24, 4)
        return self._dwords(size // 4 - 1, offset // 4, size=size, data=data)

    def _self_test(self) -> Command:
        return self._dwords(self._bits(1, 2, 0xF, 0xE, 0), nsid=self._nsid())

    def _directive(self) -> Command:
        kind = self._bits(0, 0, 1, 2, 0xFF)
        return self._dwords(
            self._bits(1023, 7, 0, 23),
            self._bits(1, 1, 0, 2) | kind << 8,
            self._bits(0, 1),
            nsid=self._nsid(),
        )

    def _format(self) -> Command:
        erase = self._bits(0, 0, 1, 2, 3) << 9
        protection = (
            self._bits(0, 0, 0, 1, 2, 3, 4) << 5 | self._bits(0, 0, 1) << 8 | self._bits(0, 0, 1) << 4
        )
        return self._dwords(self._bits(0, 1, 2, 3, 4, 5, 6, 7, 8, 15) | erase | protection, nsid=self._nsid())

    def _security(self) -> Command:
        size = self._bits(0, 8, 512, 4096, self.state.limits.transfer)
        return self._dwords(
            self._bits(0, 0, 1, 0xEA, 0xEF) << 24 | self._bits(0, 0, 1, 2) << 8,
            size,
            size=size,
            nsid=self._nsid(),
        )

    def _sanitize(self) -> Command:
        options = self._bits(0, 1 << 3) | self._bits(0, 1 << 8) | self._bits(0, 1 << 9)
        return self._dwords(
            self._bits(1, 1, 2, 3, 4, 0, 5) | options | self._bits(1, 2, 3) << 4, self.chance.getrandbits(32)
        )

    # I/O commands.

    def _range(self, space: Namespace) -> tuple[int, int]:
        """A first block and a number of blocks, mostly of the namespace."""
        chance, last = self.chance, max(0, space.blocks - 1)
        if space.zones is not None and chance.random() < 0.7:
            zone = chance.choice(space.zones.zones)
            slba = chance.choice((zone.start, zone.pointer, zone.pointer, zone.end - 1))
        else:
            slba = chance.choice((0, 0, 1, 7, 8, last // 2, last - 1, last, last + 1, 1 << 32, (1 << 64) - 1))
            if chance.random() < 0.8:
                slba = chance.randrange(last + 1)
        slba &= (1 << 64) - 1
        count = chance.choice((1, 1, 1, 2, 3, 4, 8, 8, 16, 31, 64, 256, 65536))
        if chance.random() < 0.9:
            count = max(1, min(count, space.blocks - slba))
        return slba, count

    def _lbas(self, space: Namespace) -> tuple[int, int, int]:
        """Dwords 10 and 11, and how many blocks."""
        slba, count = self._range(space)
        return slba & 0xFFFF_FFFF, slba >> 32, count

    def _protection(self, slba: int) -> dict[str, int]:
        """PRINFO and the dwords of tags, and directives."""
        info = self._bits(0, 0, 8, 8, 7, 1, 2, 4, 15)
        tag = self._bits(0, slba & 0xFFFF_FFFF, slba & 0xFFFF_FFFF, self.chance.getrandbits(32))
        directive = self._bits(0, 0, 0, 2, 1) << 20 | self._bits(0, 0, 0, 1 << 30, 1 << 31, 1 << 25)
        return {
            "cdw3": self._bits(0, slba >> 32 & 0xFFFF),
            "cdw12": info << 26 | directive,
            "cdw13": self._bits(0, 1, 2, 0x8000, 0xFFFF) << 16,
            "cdw14": tag,
            "cdw15": self._bits(0, 0xFFFF_0000, 0xFFFF_1234, 0x1234),
        }

    def _rw(self, opcode: int, space: Namespace) -> Command:
        low, high, count = self._lbas(space)
        psdt = self._bits(PRP, PRP, SGL, SGL_METADATA)
        behind = space.metadata if space.extended else 0
        size = min(count * (space.block_size + behind), 2 * self.state.limits.transfer)
        more = self._protection(low | high << 32)
        more["cdw12"] |= count - 1 & 0xFFFF
        if space.metadata and not space.extended:
            more["mptr"] = self.aim.metadata(min(count * space.metadata, 1 << 16), psdt)
        return Command(
            opcode,
            cdw10=low,
            cdw11=high,
            **self.aim.somewhere(size, psdt, reading=opcode == IoOpcode.READ),
            **more,
        )

    def _without_data(self, space: Namespace) -> Command:
        low, high, count = self._lbas(space)
        more = self._protection(low | high << 32)
        more["cdw12"] |= count - 1 & 0xFFFF
        return Command(0, cdw10=low, cdw11=high, **more)

    def _dataset_management(self, space: Namespace) -> Command:
        count = self._bits(1, 1, 1, 1, 2, 2, 3, 16, 256)
        ranges = [self._range(space) for _ in range(count)]
        data = b"".join(
            struct.pack(
                "<IIQ", self._bits(0, 0xFFFF_FFFF), self._bits(blocks, blocks, blocks, 0, blocks + 1), slba
            )
            for slba, blocks in ranges
        )
        return self._with_data(data, cdw10=count - 1, cdw11=self._bits(4, 4, 4, 0, 7))

    def _copy(self, space: Namespace) -> Command:
        low, high, _ = self._lbas(space)
        kind = self._bits(0, 0, 1, 2, 3, 4)
        if space.protection is not None and self.chance.random() < 0.9:
            kind = self._bits(0, 2) | (space.protection.guard == 64)
        count = self._bits(1, 1, 1, 1, 2, 2, 3, 16, 128, 129, 256)
        parts = []
        for _ in range(count):
            slba, blocks = self._range(space)
            nsid = self._bits(space.nsid, space.nsid, self._nsid())
            tags = struct.pack("<IHH", slba & 0xFFFF_FFFF, 0, self._bits(0, 0xFFFF))
            wide = struct.pack("<2xQ", self._bits(0, slba)) if kind & 1 else b""
            parts.append(struct.pack("<I4xQH6x", nsid, slba, blocks - 1 & 0xFFFF) + wide + tags)
        size = 40 if kind & 1 else 32
        data = b"".join(part.ljust(size, b"\0")[:size] for part in parts)
        more = self._protection(low | high << 32)
        read = self._bits(0, 0, 7, 8) if self.chance.random() < 0.5 else more["cdw12"] >> 26 & 8
        more["cdw12"] = (more["cdw12"] & 0xFFF0_0000) | count - 1 & 0xFF | kind << 8 | read << 12
        return self._with_data(data, cdw10=low, cdw11=high, **more)

    def _with_data(self, data: bytes, **more: int) -> Command:
        """A command whose data are these, in a place of any kind."""
        if self.chance.random() < 0.8:
            pointers = self.aim.contiguous(len(data))
            self.aim.ram.write(pointers["prp1"], data)
        else:
            pointers = {"flags": SGL << 6, "prp1": self.aim.put(data), "prp2": len(data)}
        return Command(0, **pointers, **more)

    def _reservation(self, space: Namespace) -> Command:
        """Of a host that knows its own key, mostly."""
        keys = space.reservation.keys
        mine, others = keys.get(self.state.host, 0), list(keys.values())
        current = mine if self.chance.random() < 0.8 else self._bits(*KEYS)
        other = self._bits(*others) if others and self.chance.random() < 0.5 else self._bits(*KEYS)
        kind = space.reservation.type if self.chance.random() < 0.4 else self._bits(1, 2, 3, 4, 5, 6, 0, 7)
        options = self._bits(0, 0, 0, 0, 1 << 3) | int(kind or 0) << 8
        action = self._bits(0, 0, 0, 1, 1, 2, 7) | self._bits(0, 0, 0, 2, 3, 1) << 30
        return self._with_data(struct.pack("<QQ", current, other), cdw10=action | options)

    def _reservation_report(self, space: Namespace) -> Command:
        size = self._bits(4, 64, 4096, self.state.limits.transfer)
        psdt = self._bits(PRP, SGL)
        return Command(0, cdw10=size // 4 - 1, cdw11=self._bits(0, 1, 1), **self.aim.somewhere(size, psdt))

    def _management_receive(self, space: Namespace) -> Command:
        size = self._bits(4, 64, 4096, self.state.limits.transfer)
        return Command(
            0,
            cdw10=self._bits(1, 1, 0, 2),
            cdw11=size // 4 - 1,
            **self.aim.somewhere(size, self._bits(PRP, SGL)),
        )

    def _management_send(self, space: Namespace) -> Command:
        count = self._bits(1, 1, 2, 128, 129)
        data = b"".join(struct.pack("<H", self._bits(0, 0, 1, 0x8000, 0x8001, 2)) for _ in range(count))
        return self._with_data(data, cdw10=self._bits(1, 1, 1, 0, 2) | count - 1 << 16)

    def _zone_send(self, space: Namespace) -> Command:
        low, high, _ = self._lbas(space)
        action = self._bits(*_SENDS, 4, 3, 0, 0xFF)
        flags = self._bits(0, 0, 0, 1 << 8) | self._bits(0, 0, 1 << 9)
        return self._with_data(self.chance.randbytes(64), cdw10=low, cdw11=high, cdw13=action | flags)

    def _zone_receive(self, space: Namespace) -> Command:
        low, high, _ = self._lbas(space)
        size = self._bits(4, 64, 128, 4096, 8192, self.state.limits.transfer)
        listed = self.chance.randrange(10) << 8
        return Command(
            0,
            cdw10=low,
            cdw11=high,
            cdw12=size // 4 - 1,
            cdw13=self._bits(0, 0, 1, 2) | listed | self._bits(0, 1 << 16),
            **self.aim.somewhere(size, self._bits(PRP, SGL)),
        )
