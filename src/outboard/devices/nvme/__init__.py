"""An NVMe controller (NVM Express Base 2.0, NVM Command Set 1.0), its I/O path compiled where Numba is there.

========================  ==================================================================
`Nvme`                    the device: ``Nvme(open_storage("ram:256M"))``
`Namespace`               a storage with a block size, where 512 bytes will not do, or with metadata
`Protection`              what of the metadata is protection information
`Subsystem`               namespaces that several controllers share
`PlacementLayout`         what lets hosts say which data belongs together
`AnaState`                how a controller can access a group of them
`Qos`                     limits of a namespace, in commands and bytes a second
`ZoneLayout`              what makes a namespace a zoned one; `ZoneState`: what its zones are in
`Tuning`                  how many pollers serve it, and how they wait
`Doorbells`               how the host tells of new commands
`Fault`                   what goes wrong on purpose: ``disk.faults.inject(Fault(...))``
========================  ==================================================================

From the registers down: `function` (PCI, interrupts, resets), `attended`, `registers`, `in_turn`,
`controller` (what Python does, in turn), `admin` and `io` (the tables of commands; `command_set` says what
is known of one), `metadata`, `protection`, `identify`, `features`, `logs`, `queue_commands`, `admission`
(what may be in a command's way), what there is to tell a host (`events`, `vitals`, `health`, `error_log`,
`telemetry`, `persistent_events`, `power`, `feature_values`), then `state`, `subsystem` and `namespace`,
`management` (what is done with those), `store`, `queues`, `transfer`, `runs`, `prp`, `sgl`, `work`,
`workers`, `monitor`, and at the bottom `spec`, `status`, `command`, `layouts`. Zones: `zones` (the states),
`zone`, `zone_layout`, `zone_commands`, and how they are kept and told of, `zone_table`, `zone_storage`,
`zone_events`, `zone_identify`. Data placement: `placement`, `reclaim`, `placement_commands`,
`placement_reports`. What goes wrong on purpose is said by `faults`, kept by `injection` and done by `strikes`
and `altered`. `datapath` is the compiled part: it serves the I/O queues.
"""

from outboard.devices.nvme.ana import AnaState
from outboard.devices.nvme.datapath.tuning import Tuning
from outboard.devices.nvme.faults import Fault
from outboard.devices.nvme.function import Doorbells, Nvme
from outboard.devices.nvme.management.pool import FolderPool, Pool, RamPool, open_pool
from outboard.devices.nvme.namespace import Namespace, Protection
from outboard.devices.nvme.placement import PlacementLayout
from outboard.devices.nvme.qos import Qos
from outboard.devices.nvme.store import Store
from outboard.devices.nvme.subsystem import Subsystem
from outboard.devices.nvme.zone import ZoneState
from outboard.devices.nvme.zone_layout import ZoneLayout

__all__ = [
    "AnaState",
    "Doorbells",
    "Fault",
    "FolderPool",
    "Namespace",
    "Nvme",
    "PlacementLayout",
    "Pool",
    "Protection",
    "Qos",
    "RamPool",
    "Store",
    "Subsystem",
    "Tuning",
    "ZoneLayout",
    "ZoneState",
    "open_pool",
]
