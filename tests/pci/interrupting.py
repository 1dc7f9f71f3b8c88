"""A device with every kind of interrupt, and the client's ends of the eventfds it is given."""

import os
from collections.abc import Callable, Sequence

from outboard import Bar, Device, Intx, IrqAction, IrqData, Msi, MsiX

MASK, UNMASK, TRIGGER = IrqAction.MASK, IrqAction.UNMASK, IrqAction.TRIGGER
NONE, BOOL, EVENTFD = IrqData.NONE, IrqData.BOOL, IrqData.EVENTFD
INTX, MSI, MSIX, ERR, REQ = range(5)
ALL = (INTX, MSI, MSIX, ERR, REQ)
CONFIG, COMMAND, STATUS = 7, 4, 6


class Interrupting(Device):
    bar = Bar(0, size=0x4000)
    msix = MsiX(vectors=64, table=(bar, 0x1000), pba=(bar, 0x2000))
    msi = Msi(vectors=4)
    intx = Intx()


def open_descriptors() -> set[str]:
    return {fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")}


class Client:
    """The client's ends of the eventfds it hands over."""

    def __init__(self) -> None:
        self.fds: list[int] = []

    def give(self, flags: int = os.EFD_NONBLOCK) -> int:
        """A descriptor to hand over; ``count(i)`` is what arrived by the i-th of them."""
        self.fds.append(os.eventfd(0, flags))
        return os.dup(self.fds[-1])

    def count(self, number: int = -1) -> int:
        try:
            return os.eventfd_read(self.fds[number])
        except BlockingIOError:
            return 0

    def counts(self) -> list[int]:
        return [self.count(number) for number in range(len(self.fds))]


def assign(device: Device, index: int, start: int, fds: Sequence[int], count: int | None = None) -> None:
    device.set_irqs(index, TRIGGER, EVENTFD, start, len(fds) if count is None else count, fds=fds)


def source(device: Interrupting, index: int) -> Callable[[], None]:
    return {
        INTX: device.intx.assert_,
        MSI: device.msi[0].trigger,
        MSIX: device.msix[0].trigger,
        ERR: device.error_irq.trigger,
        REQ: device.request_irq.trigger,
    }[index]
