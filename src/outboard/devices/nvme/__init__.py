"""An NVMe controller (NVM Express Base 2.0, NVM Command Set 1.0), its I/O path compiled where Numba is there.

========================  ==================================================================
`Nvme`                    the device: ``Nvme(open_storage("ram:256M"))``
`Namespace`               a storage with a block size, where 512 bytes will not do
`Tuning`                  how many pollers serve it, and how they wait
`Doorbells`               how the host tells of new commands
========================  ==================================================================

From the registers down: `function` (PCI, registers, interrupts), `controller` (what Python does, in turn),
`admin` and `io` (the commands), `identify`, `features`, `logs`, `queue_commands`, `events`, then
`state`, `queues`, `transfer`, `runs`, `prp`, `sgl`, `work`, `workers`, and at the bottom `spec`, `status`,
`command`, `layouts`. `datapath` is the compiled part: it serves the I/O queues.
"""

from outboard.devices.nvme.datapath.tuning import Tuning
from outboard.devices.nvme.function import Doorbells, Nvme
from outboard.devices.nvme.namespace import Namespace

__all__ = ["Doorbells", "Namespace", "Nvme", "Tuning"]
