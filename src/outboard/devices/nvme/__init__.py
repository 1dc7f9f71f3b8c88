"""An NVMe controller (NVM Express Base 2.0, NVM Command Set 1.0), in plain Python.

========================  ==================================================================
`Nvme`                    the device: ``Nvme(open_storage("ram:256M"))``
`Namespace`               a storage with a block size, where 512 bytes will not do
========================  ==================================================================

From the registers down: `function` (PCI, registers, interrupts), `controller` (queues in turn),
`admin` and `io` (the commands), `identify`, `features`, `logs`, `queue_commands`, `events`, then
`state`, `queues`, `transfer`, `prp`, and at the bottom `spec`, `status`, `command`, `layouts`.
"""

from outboard.devices.nvme.function import Nvme
from outboard.devices.nvme.namespace import Namespace

__all__ = ["Namespace", "Nvme"]
