"""A virtual machine with a Linux whose own drivers use a vfio-user device: `Guest`."""

import shutil
import socket
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from outboard.errors import GuestError
from outboard.testing.guest import cpio, process
from outboard.testing.guest.command_line import KERNEL_ARGUMENTS, Attach, Machine
from outboard.testing.guest.commands import READY, Command
from outboard.testing.guest.console import SerialLine
from outboard.testing.guest.initramfs import build_initramfs
from outboard.testing.guest.kernel import Kernel, find_kernel
from outboard.testing.guest.packages import Progress, silent
from outboard.testing.guest.qemu import Qemu, find_ovmf, find_qemu
from outboard.testing.guest.qmp import Qmp

_PANIC = b"end Kernel panic"
_PUT_CHUNK = 32 << 10
"""Linux keeps 64 KiB of a serial line that nobody reads yet, and drops what comes beyond."""


class Guest:
    """A virtual machine, to be used as a context manager: started on entry, gone on exit.

    ::

        with Guest(["/tmp/nvme.sock"], tools=["nvme-cli"]) as guest:
            print(guest.run("nvme list"))

    By default it boots Debian's cloud kernel into a root file system in memory: busybox, plus ``tools``.
    Commands run as root, one at a time, in a shell of their own.

    Args:
        devices: vfio-user sockets, each the path of a listening server or an `Attach` that says more.
            They get the ids ``dev0``, ``dev1``, ... and a PCI Express root port each.
        kernel: ``"debian"``, its cloud kernel; a `Kernel`, such as ``find_kernel(package=EVERY_MACHINE)`` for
            a driver which that has not; ``"disk"``: the firmware boots a `linux_disk`; None to boot whatever
            the firmware finds (`run` is not there then).
        memory: the guest's, as QEMU takes it.
        shared: True for a memfd that the servers map; False for plain ``-m``, where DMA goes by message.
        cpus: how many.
        append: more kernel arguments (``"pci=nomsi"``).
        tools: Debian packages to have in the guest: ``fio``, ``nvme-cli``, ``pciutils``, ``e2fsprogs``, ...
        modules: kernel modules to load at boot (``"vfio-pci"``, ``"uio_pci_generic"``).
        files: more files of the guest's: absolute path to content; they may be run.
        firmware: ``"seabios"`` (as without), ``"ovmf"``, which is UEFI, or ``"secure"``, with Secure Boot.
        spare_ports: root ports left empty for `plug`.
        extra: more arguments of QEMU's.
        qemu: the one to use, rather than the one `find_qemu` finds.
        logs: a folder that keeps ``console.log`` and ``qemu.log`` when the guest is gone.
        boot_timeout: seconds until the guest must take commands.
        progress: told what is fetched and built the first time.

    Raises:
        SetupError: on entry, when QEMU, the kernel or a tool cannot be had; says what mends it.
        GuestError: on entry, when QEMU or the guest does not start.
    """

    def __init__(
        self,
        devices: Sequence[str | Path | Attach] = (),
        *,
        kernel: Kernel | Literal["debian", "disk"] | None = "debian",
        memory: str = "512M",
        shared: bool = True,
        cpus: int = 2,
        append: str = "",
        tools: Sequence[str] = (),
        modules: Sequence[str] = (),
        files: Mapping[str, bytes] | None = None,
        firmware: Literal["seabios", "ovmf", "secure"] | None = None,
        spare_ports: int = 1,
        extra: Sequence[str] = (),
        qemu: Qemu | None = None,
        logs: Path | None = None,
        boot_timeout: float = 180,
        progress: Progress = silent,
    ) -> None:
        self.devices = tuple(each if isinstance(each, Attach) else Attach(each) for each in devices)
        self.boot_timeout = boot_timeout
        self._kernel = kernel
        self._machine: dict[str, Any] = {
            "memory": memory,
            "shared": shared,
            "cpus": cpus,
            "devices": self.devices,
            "spare_ports": spare_ports,
            "append": f"{KERNEL_ARGUMENTS} {append}".rstrip(),
            "extra": extra,
        }
        self._contents = (tools, modules, files or {})
        self._firmware = firmware
        self._qemu = qemu
        self._logs = logs
        self._progress = progress
        self._boot_mark = 0
        self._ports = [f"port{number}" for number in range(len(self.devices) + spare_ports)]
        self._used_ports = {
            device.id or f"dev{number}": f"port{number}" for number, device in enumerate(self.devices)
        }

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, GuestError):
            error.add_note(self._last_words())
        self.kill()

    def start(self) -> None:
        """Start the machine and, unless the firmware boots it, wait until it takes commands."""
        qemu = self._qemu or find_qemu(self._progress)
        self._folder = self._logs or Path(tempfile.mkdtemp(prefix="outboard-guest-"))
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            self._launch(qemu)
        except BaseException:
            self._remove_folder()
            raise
        try:
            self._qmp = self._greeting()
            if self._kernel is not None:
                self._expect(self._commands, READY, 0, self.boot_timeout, "boot")
        except BaseException:
            self.kill()
            raise

    def _launch(self, qemu: Qemu) -> None:
        machine = Machine(**self._machine, **self._images(self._folder))
        ours, theirs = zip(*(socket.socketpair() for _ in range(3)), strict=True)
        try:
            console, commands, qmp = (end.fileno() for end in theirs)
            self._process = process.start(
                [*qemu.command, *machine.arguments(console=console, commands=commands, qmp=qmp)],
                log=self._folder / "qemu.log",
                pass_fds=(console, commands, qmp),
            )
        except BaseException:
            for end in ours:
                end.close()
            raise
        finally:
            for end in theirs:
                end.close()
        self._reaper = weakref.finalize(self, _reap, self._process)
        self._changed = threading.Condition()
        self._console = SerialLine(ours[0], self._changed, log=self._folder / "console.log")
        self._commands = SerialLine(ours[1], self._changed)
        self._qmp_socket = ours[2]

    def _images(self, folder: Path) -> dict[str, Any]:
        images: dict[str, Any] = {}
        if self._firmware in ("ovmf", "secure"):
            images["secure"] = self._firmware == "secure"
            code, template = find_ovmf(self._progress, secure=images["secure"])
            images["pflash"] = (code, Path(shutil.copyfile(template, folder / "ovmf-variables.fd")))
        kernel = find_kernel(self._progress) if self._kernel == "debian" else self._kernel
        if isinstance(kernel, Kernel):
            tools, modules, files = self._contents
            initramfs = build_initramfs(kernel, tools, modules, progress=self._progress)
            if files:
                more = {path: cpio.file(content, executable=True) for path, content in files.items()}
                whole = folder / "initramfs.cpio"
                whole.write_bytes(initramfs.read_bytes() + cpio.archive(more))
                initramfs = whole
            images |= {"kernel": kernel.image, "initramfs": initramfs}
        return images

    def _greeting(self) -> Qmp:
        try:
            return Qmp(self._qmp_socket)
        except GuestError as error:
            raise GuestError(f"the guest did not start: {error}\n{self._last_words()}") from None

    @property
    def console(self) -> str:
        """All that the kernel, or the firmware, printed so far."""
        return self._console.text()

    @property
    def pid(self) -> int:
        """The process id of QEMU."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether QEMU still runs."""
        return self._process.poll() is None

    def run(self, command: str, timeout: float = 60) -> str:
        """Run a shell command in the guest and return what it printed, both its outputs.

        What it leaves running in the background must have its output redirected.

        Raises:
            GuestError: it ends with a status other than 0 (``status`` and ``output`` of the error tell), it
                does not end within ``timeout`` seconds, or the guest panicked or is gone.
        """
        if self._kernel is None:
            raise GuestError(
                f"`{command}` needs a guest with a kernel: use `wait_for` to see what its firmware does"
            )
        return self._run(Command(command), timeout)

    def _run(self, request: Command, timeout: float) -> str:
        command, start = request.text, self._commands.position
        self._send(request)
        try:
            end = self._expect(self._commands, request.end, start, timeout, f"end `{command}`")
            self._expect(self._commands, b"\n", end + len(request.end), timeout, f"end `{command}`")
        except GuestError as error:
            error.output = request.answer(self._commands.data(start)).output
            raise
        answer = request.answer(self._commands.data(start))
        if answer.status != 0:
            raise GuestError(
                f"`{command}` ended with status {answer.status} in the guest:\n{answer.output}",
                status=answer.status,
                output=answer.output,
            )
        return answer.output

    def put(self, path: str, content: bytes) -> None:
        """Write a file in the guest, at some 30 KiB/s: give large ones as ``files`` before it starts.

        Raises:
            GuestError: it cannot be written, or the guest is gone.
        """
        self.run(f": >'{path}'")
        for offset in range(0, len(content), _PUT_CHUNK):
            self._run(Command(f"cat >>'{path}'", content[offset : offset + _PUT_CHUNK]), timeout=60)

    def wait_for(self, text: str, timeout: float = 60) -> None:
        """Wait until ``text`` is on the console, since the start or the last `reboot`.

        Raises:
            GuestError: it does not come within ``timeout`` seconds, or the guest is gone.
        """
        self._expect(self._console, text.encode(), self._boot_mark, timeout, f"print {text!r}")

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Run a command of QEMU's machine protocol and return what it returns.

        Raises:
            GuestError: QEMU refuses it, or is gone.
        """
        return self._qmp.execute(command, **arguments)

    def wait_event(self, name: str, timeout: float = 60, **data: Any) -> dict[str, Any]:
        """The oldest event ``name`` of QEMU's not taken yet whose data holds ``data``, waited for if need be.

        Raises:
            GuestError: it does not come within ``timeout`` seconds, or QEMU is gone.
        """
        return self._qmp.wait_event(name, timeout, **data)

    def plug(self, device: str | Path | Attach) -> str:
        """Plug a vfio-user device into an empty root port, and return its id; the guest finds it by itself.

        Raises:
            GuestError: no port is empty (see ``spare_ports``), or QEMU refuses the device.
        """
        attach = device if isinstance(device, Attach) else Attach(device)
        free = next((port for port in self._ports if port not in self._used_ports.values()), None)
        if free is None:
            raise GuestError(
                f"all {len(self._ports)} root ports are taken: give the guest more `spare_ports`"
            )
        names = (f"dev{number}" for number in range(len(self._ports)))
        name = attach.id or next(name for name in names if name not in self._used_ports)
        self.qmp("device_add", **attach.device(name, free))
        self._used_ports[name] = free
        return name

    def unplug(self, name: str, timeout: float = 60) -> None:
        """Unplug the device with the id ``name`` and wait until the guest has let it go.

        Raises:
            GuestError: there is none, or the guest does not let it go within ``timeout`` seconds.
        """
        self.qmp("device_del", id=name)
        self.wait_event("DEVICE_DELETED", timeout, device=name)
        self._used_ports.pop(name, None)

    def reboot(
        self, *, clean: bool = True, command: str = "sync; reboot -f", timeout: float | None = None
    ) -> None:
        """Reboot, and wait until the guest takes commands again (not with firmware alone).

        Args:
            clean: True has Linux shut its devices down and reboot; False is the reset button.
            command: what Linux reboots by, ``kexec -e`` to start the kernel that was loaded, say.
            timeout: seconds, ``boot_timeout`` if None.
        """
        start, self._boot_mark = self._commands.position, self._console.position
        if clean and self._kernel is not None:
            self._send(Command(command))
        else:
            self.qmp("system_reset")
        if self._kernel is not None:
            self._expect(self._commands, READY, start, timeout or self.boot_timeout, "reboot")

    def shutdown(self, timeout: float = 60) -> None:
        """Have Linux shut its devices down and switch the machine off (with firmware alone: end QEMU).

        Raises:
            GuestError: it is not off within ``timeout`` seconds, or QEMU ended badly.
        """
        if self._kernel is not None:
            self._send(Command("sync; poweroff -f"))
        else:
            self.qmp("quit")
        if (status := self.wait(timeout)) != 0:
            raise GuestError(f"QEMU ended with status {status} at shutdown\n{self._last_words()}")

    def wait(self, timeout: float = 60) -> int:
        """Wait until QEMU has ended, and return its exit status (negative: the signal that ended it).

        Raises:
            GuestError: it still runs after ``timeout`` seconds.
        """
        try:
            status = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise GuestError(f"the guest did not end within {timeout:g} s\n{self._last_words()}") from None
        self.kill()
        return status

    def kill(self) -> None:
        """End QEMU at once, as a power cut would; harmless when it is gone. The console stays readable."""
        if self._reaper.detach() is not None:
            _reap(self._process)
            for line in (self._console, self._commands):
                line.close()
            self._qmp_socket.close()
            self._remove_folder()

    def _send(self, command: Command) -> None:
        try:
            self._commands.send(command.request)
        except OSError as error:
            raise GuestError(
                f"`{command.text}` cannot be sent to the guest ({error.strerror})\n{self._last_words()}"
            ) from None

    def _expect(self, line: SerialLine, wanted: bytes, start: int, timeout: float, what: str) -> int:
        """Where ``wanted`` is on ``line``, waited for; raises GuestError if it cannot come any more."""
        deadline = time.monotonic() + timeout
        searched = start
        with self._changed:
            while (found := line.find(wanted, searched)) < 0:
                searched = max(start, line.position - len(wanted) + 1)
                if self._panicked():
                    raise GuestError(f"the guest panicked; it did not {what}\n{self._last_words()}")
                if line.closed:
                    raise GuestError(f"the guest ended; it did not {what}\n{self._last_words()}")
                if not self._changed.wait(deadline - time.monotonic()) and time.monotonic() >= deadline:
                    failure = f"the guest did not {what} within {timeout:g} s; {self._state()}"
                    raise GuestError(f"{failure}\n{self._last_words()}")
        return found

    def _panicked(self) -> bool:
        said = self._console.find(_PANIC, self._boot_mark)
        return said >= 0 and self._console.find(b"\n", said) >= 0

    def _state(self) -> str:
        try:
            return f"QEMU says it is {self._qmp.execute('query-status', timeout=2)['status']}"
        except GuestError:
            return "QEMU does not answer either: it may be waiting for the server of a device"

    def _last_words(self) -> str:
        """What QEMU and the console said last."""
        log = self._folder / "qemu.log"
        said = log.read_text(errors="replace").strip() if log.exists() else ""
        qemu = f"QEMU said: {said}\n" if said else ""
        return f"{qemu}the guest's console ended with:\n{self._console.last_lines()}"

    def _remove_folder(self) -> None:
        if self._logs is None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _reap(qemu: "subprocess.Popen[bytes]") -> None:
    qemu.kill()
    qemu.wait()
