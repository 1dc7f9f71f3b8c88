"""The NVMe data plane: the I/O queues, served by compiled loops without the GIL.

==============  =====================================================================================
`records`       what Python and the loop share
`loop`          `serve`: what a poller runs: the queues in turn, then spin, then sleep
`doorbells`     tails and heads, by message, mapped, or in guest memory with event indices
`decode`        which lane a command takes
`walk`          PRPs and SGLs to runs of memory
`execute`       the fast lane, and the way to the slow one and back
`beside`        namespaces in memory whose blocks have metadata
`protect`       protection information: judged, and made; for both lanes
`files`         file namespaces, by io_uring
`completion`    completions and interrupts
`workspace`     the memory of one poller, `spaces` what it knows of a namespace
`tuning`        `Tuning`: how pollers wait
`plane`         `DataPlane`: all of it as Python sees it
==============  =====================================================================================
"""
