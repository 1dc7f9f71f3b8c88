"""A measuring NVMe driver: keeps queues full, and takes the time of every command.

* `workload`: what to measure, and the result
* `plan`: whether the controller can do it, and where everything lies in memory
* `doorbells`: mapped, shadow or trapped
* `measurement`: sets up, runs, and gathers
* `loop`, `choose`, `histogram`: what is compiled; `layout`: the words they share
"""

from outboard.drivers.nvme_measure.doorbells import Doorbells
from outboard.drivers.nvme_measure.measurement import Measurement, measuring
from outboard.drivers.nvme_measure.workload import PATTERNS, Result, Workload

__all__ = ["PATTERNS", "Doorbells", "Measurement", "Result", "Workload", "measuring"]
