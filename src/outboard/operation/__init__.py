"""NVMe subsystems as a service: described by a file, changed through a socket, watched while they run.

========================  ==================================================================
`read_configuration`      a TOML file -> `Configuration`
`Running`                 all that it describes: subsystems, control socket, metrics
`Service`                 the subsystems alone
`ControlClient`           asks the control socket
`statistics_of`           what was counted
========================  ==================================================================

`declared` is below all of it: what may be given is declared once, for the file, the socket, the command line
and the documentation. `options` says what there is of namespaces, controllers and sockets.
"""

from outboard.operation.configuration import Configuration, read_configuration
from outboard.operation.control.client import ControlClient
from outboard.operation.running import Running
from outboard.operation.service import Service
from outboard.operation.statistics import statistics_of

__all__ = ["Configuration", "ControlClient", "Running", "Service", "read_configuration", "statistics_of"]
