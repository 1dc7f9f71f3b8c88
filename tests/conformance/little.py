"""A small vfio-user server of plain bytes, right in every point, until it is told to be wrong in one.

One BAR of four pages (the second may be mapped, the first has an ioeventfd), eight MSI-X vectors, INTx, ERR
and REQ, power management, migration of a few bytes, a log of pages. `FAULTS` in test_faults.py names what it
can be made to do wrong.
"""

import errno
import json
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from outboard.descriptors import ANCILLARY, close_all, received
from tests import raw
from tests.conformance.little_lines import Lines, Refused
from tests.conformance.little_migration import Migrating

BAR, PAGE = 0x4000, 4096
EINVAL, ENOENT, EEXIST = errno.EINVAL, errno.ENOENT, errno.EEXIST
LIMIT = 16 + 4096 + (1 << 20)
AREA = (0x1000, 0x1000)
SIZES = {0: BAR, raw.CONFIG: 256}
WRITABLE = {4: 0x07, 5: 0x05, 0x0C: 0xFF, 0x3C: 0xFF, 0x43: 0xC0, 0x54: 0x03}
Answer = tuple[bytes, Sequence[int]]


class Stop(Exception):
    """The connection ends."""


class Little(Lines, Migrating):
    """Listens on ``path`` in a thread; a context manager. ``faults`` are the names of what is wrong."""

    def __init__(self, path: str, faults: Iterable[str] = ()) -> None:
        self.path, self.faults = path, frozenset(faults)
        self.config, self.bar = bytearray(256), bytearray(BAR)
        struct.pack_into("<HHHH", self.config, 0, 0x1234, 0x4321, 0, 0x0010)
        self.config[0x34], self.config[0x3D] = 0x40, 1
        table = 0x1000 if "table in area" in self.faults else 0x2000
        struct.pack_into("<BBHII", self.config, 0x40, 0x11, 0x50, 7, table, 0x3000)
        struct.pack_into("<BBHI", self.config, 0x50, 0x01, 0, 3, 0)
        self.memory, self.doorbell = os.memfd_create("little"), os.eventfd(0)
        os.truncate(self.memory, PAGE if "short file" in self.faults else BAR)
        self.maps: dict[int, tuple[int, int]] = {}
        self.leaked: list[int] = []
        Lines.__init__(self)
        Migrating.__init__(self)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(path)
        self.listener.listen()
        self.thread = threading.Thread(target=self.serve, daemon=True)

    def __enter__(self) -> "Little":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.listener.fileno() >= 0:
            self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join(10)
        self.listener.close()
        self.forget()
        close_all((self.memory, self.doorbell, *self.leaked))

    def serve(self) -> None:
        while True:
            try:
                self.connection = self.listener.accept()[0]
            except OSError:
                return
            with self.connection:
                try:
                    self.converse()
                except (Stop, OSError):
                    self.connection.close()
            self.forget()
            if "ends with its client" in self.faults:
                self.listener.close()
                return

    def forget(self) -> None:
        """The client has gone: its maps and descriptors go, the device stays."""
        if "keeps maps" not in self.faults:
            self.maps.clear()
        if "keeps descriptors" not in self.faults:
            self.drop_lines()
        else:
            self.leaked += self.all_lines()
            self.lines = {}
        self.unmask_fd = self.release(self.unmask_fd)
        if "forgets" in self.faults:
            self.config[0x3C] = 0
        self.new, self.log = True, None

    def read(self, size: int, fds: list[int], *, cut: bool = False) -> bytes:
        data = b""
        while len(data) < size:
            if cut and 0 < len(data) < size:
                raise Refused(EINVAL)
            part, ancillary, _, _ = self.connection.recvmsg(size - len(data), ANCILLARY)
            fds += received(ancillary)
            if not part:
                raise Stop
            data += part
        return data

    def converse(self) -> None:
        self.new, self.last_id = True, -1
        while True:
            fds: list[int] = []
            head = self.read(16, fds) if "short header" not in self.faults else self.connection.recv(16)
            if len(head) < 16:
                raise Stop
            id, command, size, flags, _ = raw.HEADER.unpack(head)
            try:
                self.one(id, command, size, flags, fds)
            finally:
                self.leaked += fds if "keeps strays" in self.faults else []
                if "keeps strays" not in self.faults:
                    close_all(fds)

    def one(self, id: int, command: int, size: int, flags: int, fds: list[int]) -> None:
        """One message: read, judged, carried out, answered."""
        silent, body = bool(flags & raw.NO_REPLY), b""
        try:
            if not 16 <= size <= LIMIT and not (size > LIMIT and "believes sizes" in self.faults):
                if "size in the stream" in self.faults:
                    raise Refused(EINVAL)
                self.reply(id, command, raw.REPLY | raw.ERROR, EINVAL)
                raise Stop
            body = self.read(size - 16, fds, cut="short body" in self.faults)
            if flags & 0xF == 1:
                if "answers replies" in self.faults:
                    self.reply(id, command, raw.REPLY)
                return
            if flags & 0xF > 1:
                raise Stop
            if "ids once" in self.faults and id == self.last_id:
                raise Refused(EINVAL)
            self.last_id = id
            payload, out = self.carry_out(command, body, fds)
            if silent and "answers posted" not in self.faults:
                return
            if "wrong id" in self.faults and id == 0xFFFF:
                id = 0
            self.reply(id, command, raw.REPLY, 0, payload, out)
        except (Refused, struct.error) as refusal:
            number = refusal.args[0] if isinstance(refusal, Refused) else EINVAL
            if not silent or "answers posted failures" in self.faults:
                extra = body[:16] if "payload in errors" in self.faults else b""
                number = 0 if "errors without errno" in self.faults else number
                mark = raw.ERROR if "untyped errors" in self.faults else raw.REPLY | raw.ERROR
                self.reply(id, command, mark, number, extra)
            if command == raw.VERSION and self.new:
                raise Stop from None

    def reply(
        self, id: int, command: int, flags: int, error: int = 0, payload: bytes = b"", fds: Sequence[int] = ()
    ) -> None:
        data = raw.HEADER.pack(id, command, 16 + len(payload), flags, error) + payload
        ancillary = (
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"={len(fds)}i", *fds))] if fds else []
        )
        if "two sends" in self.faults and payload:
            self.connection.sendmsg([data[:16]], ancillary)
            threading.Event().wait(0.005)
            self.connection.sendall(data[16:])
            return
        sent = self.connection.sendmsg([data], ancillary)
        self.connection.sendall(data[sent:])

    def carry_out(self, command: int, body: bytes, fds: list[int]) -> Answer:
        methods: dict[int, Callable[[bytes, list[int]], Answer]] = {
            raw.VERSION: self.version,
            raw.DMA_MAP: self.dma_map,
            raw.DMA_UNMAP: self.dma_unmap,
            raw.DEVICE_INFO: self.device_info,
            raw.REGION_INFO: self.region_info,
            raw.REGION_IO_FDS: self.io_fds,
            raw.IRQ_INFO: self.irq_info,
            raw.SET_IRQS: self.set_irqs,
            raw.REGION_READ: self.region_read,
            raw.REGION_WRITE: self.region_write,
            raw.RESET: self.reset,
            raw.WRITE_MULTI: self.write_multi,
            raw.FEATURE: self.feature,
            raw.MIG_DATA_READ: self.data_read,
            raw.MIG_DATA_WRITE: self.data_write,
        }
        method = methods.get(command)
        if self.new and command != raw.VERSION and "serves before version" not in self.faults:
            raise Refused(EINVAL)
        if command == raw.VERSION and not self.new and "goes at a second version" in self.faults:
            self.faults |= {"ends with its client"}
            raise Refused(EINVAL)
        if command == raw.VERSION and not self.new and "version twice" not in self.faults:
            raise Refused(EINVAL)
        if method is None:
            if "knows all" in self.faults:
                return b"", ()
            raise Refused(EINVAL)
        return method(body, fds)

    def version(self, body: bytes, fds: list[int]) -> Answer:
        major, minor = struct.unpack_from("=HH", body)
        said = self.understood(body[4:])
        if major and "any major" not in self.faults:
            raise Refused(EINVAL)
        self.new = False
        if "client leaks" in self.faults:
            self.leaked.append(os.dup(self.memory))
        self.client_fds = said.get("max_msg_fds", 1)
        if "no json" in self.faults:
            return struct.pack("=HH", 0, minor), ()
        answer: dict[str, Any] = {"max_msg_fds": 16, "max_data_xfer_size": 1 << 20, "pgsizes": 4096}
        out: tuple[int, ...] = ()
        if said.get("twin_socket", {}).get("supported") or "twin unasked" in self.faults:
            ours, theirs = socket.socketpair()
            self.leaked += [ours.detach(), theirs.fileno()]
            out = (theirs.detach(),)
            answer["twin_socket"] = {"supported": True, "fd_index": 1 if "twin index" in self.faults else 0}
        if "long version" in self.faults:
            answer["vendor"] = "x" * 200
        if "many fds" in self.faults:
            answer["max_msg_fds"] = 64
        if "offers multi" in self.faults:
            answer["write_multiple"] = True
        minor = 2 if "minor two" in self.faults else min(minor, 1)
        return struct.pack("=HH", 0, minor) + json.dumps({"capabilities": answer}).encode() + b"\0", out

    def understood(self, text: bytes) -> dict[str, Any]:
        """The capabilities in a text, each of its type."""
        if not text:
            return {}
        try:
            if text[-1:] != b"\0" or len(text) > 1 << 16:
                raise ValueError
            said = json.loads(text[:-1])
            found = said.get("capabilities", {})
            if not isinstance(found, dict):
                raise ValueError
            if "strict keys" in self.faults and "x_new" in found:
                raise ValueError
            fds = found.get("max_msg_fds", 1)
            if (
                not isinstance(fds, int)
                or not 0 <= fds <= 1024
                or type(found.get("max_data_xfer_size", 1)) is not int
            ):
                raise ValueError
        except (ValueError, AttributeError, RecursionError):
            if "any json" in self.faults:
                return {}
            raise Refused(EINVAL) from None
        return dict(found)

    def device_info(self, body: bytes, fds: list[int]) -> Answer:
        argsz = struct.unpack_from("=IIII", body)[0]
        if argsz < 16 and "any argsz" not in self.faults:
            raise Refused(EINVAL)
        if argsz > 16 and "exact argsz" in self.faults:
            raise Refused(EINVAL)
        return struct.pack("=IIII", 16, 1 if "not pci" in self.faults else 3, 9, 5), ()

    def region_info(self, body: bytes, fds: list[int]) -> Answer:
        argsz, _, index, _, _, _ = struct.unpack_from("=IIIIQQ", body)
        if argsz < 32 or (index >= 9 and "any region" not in self.faults):
            raise Refused(EINVAL)
        if index == 8 and "undescribed" in self.faults:
            raise Refused(EINVAL)
        if "region leaks" in self.faults:
            self.leaked.append(os.dup(self.memory))
        if index:
            size = SIZES.get(index, 0)
            flags = 3 if size or "flags without size" in self.faults else 0
            return struct.pack("=IIIIQQ", 32, flags, index, 0, size, 0), ()
        area = (0x800, 0x1000) if "odd area" in self.faults else AREA
        chain = struct.pack("=HHIIIQQ", 1, 1, 0, 1, 0, *area)
        out: tuple[int, ...] = (self.memory,) if self.client_fds else ()
        flags, cap_offset = 15, 32
        if argsz < 64 and not (argsz > 32 and "half a chain" in self.faults):
            flags, cap_offset, chain = (15, 32, b"") if "caps when cut" in self.faults else (7, 0, b"")
            out = ()
        needed = 32 if "no retry" in self.faults and argsz < 64 else 64
        if "many region fds" in self.faults:
            out = out * 2
        return struct.pack("=IIIIQQ", needed, flags, 0, cap_offset, BAR, 0) + chain, out

    def io_fds(self, body: bytes, fds: list[int]) -> Answer:
        argsz, flags, index, count = struct.unpack_from("=IIII", body)
        if (
            index >= 9
            or not SIZES.get(index)
            or argsz < 16
            or ((flags or count) and "io flags" not in self.faults)
        ):
            raise Refused(EINVAL)
        if index or (not self.client_fds and "many io fds" not in self.faults):
            return struct.pack("=IIII", 16, 0, index, 0), ()
        head = struct.pack("=IIII", 56, 0, 0, 1)
        if argsz < 56:
            return head, (self.doorbell,) if "io fds when cut" in self.faults else ()
        which = 3 if "io index" in self.faults else 0
        return head + struct.pack("=QQIIIIQ", 0, 4, which, 0, 0, 0, 0), (self.doorbell,)

    def place(self, body: bytes, limit: int = 1 << 20) -> tuple[int, int, int]:
        offset, region, count = struct.unpack_from("=QII", body)
        if "wraps" in self.faults:
            inside = (offset + count) & (1 << 64) - 1 <= SIZES.get(region, 0)
        else:
            inside = offset + count <= SIZES.get(region, 0)
        if region == 5 and "region five" in self.faults:
            return 0, raw.CONFIG, count
        if count > limit and "large reads" in self.faults:
            return 0, raw.CONFIG, 0
        if not inside or count > limit or (not region and offset >= 0x3000 and "no pba" in self.faults):
            raise Refused(EINVAL)
        return offset, region, count

    def region_read(self, body: bytes, fds: list[int]) -> Answer:
        offset, region, count = self.place(body)
        if not count and "bytes needed" in self.faults:
            raise Refused(EINVAL)
        if "words only" in self.faults and count == 2 and offset % 2:
            raise Refused(EINVAL)
        content = bytes(self.memory_of(region, offset, count))
        return body[:16] + content, ()

    def memory_of(self, region: int, offset: int, count: int) -> bytes:
        if region:
            return bytes(self.config[offset : offset + count])
        if offset >= 0x1000 and offset + count <= 0x2000 and "own memory" not in self.faults:
            return os.pread(self.memory, count, offset)
        return bytes(self.bar[offset : offset + count])

    def region_write(self, body: bytes, fds: list[int]) -> Answer:
        offset, region, count = self.place(body)
        data = body[16:]
        if len(data) != count and "any data" not in self.faults:
            raise Refused(EINVAL)
        self.store(region, offset, data)
        return (body if "write echo" in self.faults else body[:16]), ()

    def store(self, region: int, offset: int, data: bytes) -> None:
        if region:
            for at, value in enumerate(data, offset):
                if at < 4 and "read-only fails" in self.faults:
                    raise Refused(EINVAL)
                self.store_config(at, value)
            return
        data = data[:: -1 if "big end" in self.faults else 1]
        if offset >= 0x1000 and offset + len(data) <= 0x2000 and "own memory" not in self.faults:
            os.pwrite(self.memory, data, offset)
        else:
            self.bar[offset : offset + len(data)] = data

    def store_config(self, at: int, value: int) -> None:
        mask = WRITABLE.get(at, 0)
        if at == 0x3C and "no line" in self.faults:
            mask = 0
        if 0x10 <= at < 0x14 and "no sizing" not in self.faults:
            mask = ~(BAR - 1) >> 8 * (at - 0x10) & 0xFF
        if 0x10 <= at < 0x14 and not value and "bars stay" in self.faults:
            mask = 0
        if 0x30 <= at < 0x34 and "phantom rom" in self.faults:
            mask = 0xFF if at > 0x30 else 0
        if at < 2 and "vendor" in self.faults:
            mask = 0xFF
        if at == 0x41 and "capability header" in self.faults:
            mask = 0xFF
        if at == 0x43 and "msix stays off" in self.faults:
            mask = 0
        if at == 0x54 and "no power" in self.faults:
            mask = 0
        if at == 4 and "command" in self.faults:
            mask = 0
        if at == 6 and "status" in self.faults:
            mask = 0xFF
        self.config[at] = (self.config[at] & ~mask | value & mask) & 0xFF

    def write_multi(self, body: bytes, fds: list[int]) -> Answer:
        count = struct.unpack_from("=Q", body)[0]
        if "no multi" in self.faults:
            raise Refused(EINVAL)
        if count * 24 != len(body) - 8:
            if "multi count" not in self.faults:
                raise Refused(EINVAL)
            count = 0
        writes = [struct.unpack_from("=QII8s", body, 8 + 24 * number) for number in range(count)]
        for offset, region, size, data in writes[::-1] if "multi backwards" in self.faults else writes:
            if size > 8:
                raise Refused(EINVAL)
            self.place(struct.pack("=QII", offset, region, size))
            self.store(region, offset, data[:size])
        return body[:8], ()

    def reset(self, body: bytes, fds: list[int]) -> Answer:
        if "dies of resets" in self.faults:
            os.abort()
        if "no reset" in self.faults:
            raise Refused(EINVAL)
        if "keeps config" not in self.faults:
            self.config[4:6] = bytes(2)
            self.config[0x10:0x28] = bytes(24)
        if "reset unmaps" in self.faults:
            self.maps.clear()
        return b"", ()

    def dma_map(self, body: bytes, fds: list[int]) -> Answer:
        argsz, flags, offset, address, size = struct.unpack_from("=IIQQQ", body)
        checks = {
            "map argsz": argsz >= 32,
            "map of nothing": size > 0,
            "map wraps": address + size <= 1 << 64,
            "map flags": not flags & ~3,
            "map of two": len(fds) < 2,
            "few maps": len(self.maps) < 64,
            "maps need descriptors": bool(fds),
            "aligned maps": not address % PAGE,
        }
        unless = {"few maps", "maps need descriptors", "aligned maps"}
        for name, holds in checks.items():
            if not holds and (name in self.faults) == (name in unless):
                raise Refused(EINVAL)
        for other, (length, at) in self.maps.items():
            if address < other + length and other < address + size:
                if (address, size, offset) == (other, length, at) or "overlap" in self.faults:
                    return b"", ()
                raise Refused(EINVAL if "overlap errno" in self.faults else EEXIST)
        if size:
            self.maps[address] = (size, offset)
        if "descriptor a map" in self.faults:
            self.leaked += fds
            fds.clear()
        return b"", ()

    def dma_unmap(self, body: bytes, fds: list[int]) -> Answer:
        _, flags, address, size = struct.unpack_from("=IIQQ", body)
        if flags == 2 and not address and not size:
            if "no unmap all" in self.faults:
                raise Refused(EINVAL)
            self.maps.clear()
        elif flags and "unmap flags" not in self.faults:
            raise Refused(EINVAL)
        elif self.maps.get(address, (0, 0))[0] == size or (
            "unmap parts" in self.faults and address in self.maps
        ):
            del self.maps[address]
        elif "unmap anything" not in self.faults:
            raise Refused(ENOENT)
        return (b"" if "bare unmap" in self.faults else body[:24]), ()


if __name__ == "__main__":
    Little(sys.argv[1], sys.argv[2:]).serve()
