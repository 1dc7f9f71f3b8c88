"""The QEMU command line of a guest: from what is wanted to arguments, nothing done (qemu-system(1))."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KERNEL_ARGUMENTS = "console=ttyS0 panic=0 oops=panic mitigations=off cryptomgr.notests no_timer_check"
"""The last: a busy host keeps an emulated timer waiting, and Linux behind an IOMMU would panic over it."""


@dataclass(frozen=True, slots=True)
class Attach:
    """How a vfio-user device is attached to a guest.

    Attributes:
        path: of the UNIX socket its server listens on.
        id: QEMU's name of it; ``dev0``, ``dev1``, ... in order if empty.
        bootindex: its place in the firmware's boot order, None to leave it out.
        port: behind a PCI Express root port of its own, so that it can be unplugged; False puts it on the
            root bus, as a conventional device wants it.
        properties: more properties of QEMU's ``vfio-user-pci`` (``{"x-msg-timeout": 20000}``).
    """

    path: str | Path
    id: str = ""
    bootindex: int | None = None
    port: bool = True
    properties: Mapping[str, Any] = field(default_factory=dict)

    def device(self, name: str, bus: str) -> dict[str, Any]:
        """The arguments of QEMU's ``device_add``, which are also the JSON of its ``-device``."""
        boot = {} if self.bootindex is None else {"bootindex": self.bootindex}
        socket = {"type": "unix", "path": str(self.path)}
        return {
            "driver": "vfio-user-pci",
            "id": name,
            "bus": bus,
            "socket": socket,
            **boot,
            **self.properties,
        }


@dataclass(frozen=True, slots=True)
class Machine:
    """All that QEMU is told about a guest.

    Attributes:
        memory: its size as QEMU takes it (``512M``).
        shared: memory in a memfd that vfio-user servers map; False is plain ``-m``: DMA by message only.
        cpus: how many.
        devices: the vfio-user devices; the n-th gets the root port ``port<n>``.
        spare_ports: empty root ports after those, for devices plugged in later.
        kernel, initramfs, append: what to boot directly; None boots from the devices by firmware.
        pflash: UEFI firmware: its code and its (writable) variables; None is SeaBIOS.
        secure: the variables are kept from the guest (system management mode), as Secure Boot wants it.
        extra: more arguments.
    """

    memory: str = "512M"
    shared: bool = True
    cpus: int = 2
    devices: Sequence[Attach] = ()
    spare_ports: int = 1
    kernel: Path | None = None
    initramfs: Path | None = None
    append: str = ""
    pflash: tuple[Path, Path] | None = None
    secure: bool = False
    extra: Sequence[str] = ()

    def arguments(self, *, console: int, commands: int, qmp: int) -> list[str]:
        """The arguments; the three are descriptors of connected sockets that QEMU inherits."""
        return [
            *("-nodefaults", "-no-user-config", "-display", "none"),
            *("-machine", f"q35,graphics=off,accel={accelerator()}"),
            *("-cpu", "max", "-smp", str(self.cpus)),
            *self._memory(),
            *_channel("console", console, "-serial", "chardev:console"),
            *_channel("commands", commands, "-serial", "chardev:commands"),
            *_channel("qmp", qmp, "-qmp", "chardev:qmp"),
            *self._firmware(),
            *self._boot(),
            *self._devices(),
            *self.extra,
        ]

    def _memory(self) -> Iterator[str]:
        yield from ("-m", self.memory)
        if self.shared:
            yield from ("-object", f"memory-backend-memfd,id=ram,size={self.memory},share=on")
            yield from ("-machine", "memory-backend=ram")

    def _firmware(self) -> Iterator[str]:
        if self.pflash is not None:
            code, variables = (str(path).replace(",", ",,") for path in self.pflash)
            if self.secure:
                yield from ("-machine", "smm=on")
                yield from ("-global", "driver=cfi.pflash01,property=secure,value=on")
            yield from ("-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={code}")
            yield from ("-drive", f"if=pflash,format=raw,unit=1,file={variables}")

    def _boot(self) -> Iterator[str]:
        if self.kernel is not None:
            yield from ("-kernel", str(self.kernel), "-append", self.append)
            if self.initramfs is not None:
                yield from ("-initrd", str(self.initramfs))

    def _devices(self) -> Iterator[str]:
        for number in range(len(self.devices) + self.spare_ports):
            yield from ("-device", f"pcie-root-port,id=port{number},chassis={number + 1},slot={number + 1}")
        for number, attach in enumerate(self.devices):
            bus = f"port{number}" if attach.port else "pcie.0"
            yield from ("-device", json.dumps(attach.device(attach.id or f"dev{number}", bus)))


def accelerator(cpuinfo: Path = Path("/proc/cpuinfo"), kvm: Path = Path("/dev/kvm")) -> str:
    """``kvm`` where the processor has VT-x or AMD-V and we may use it, else ``tcg``.

    A /dev/kvm without either is KVM in software (PVM), which Debian's kernel does not survive.
    """
    flags = next((line.split() for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), ())
    return "kvm" if {"vmx", "svm"} & {*flags} and os.access(kvm, os.R_OK | os.W_OK) else "tcg"


def _channel(name: str, descriptor: int, *use: str) -> tuple[str, ...]:
    return ("-chardev", f"socket,id={name},fd={descriptor}", *use)
