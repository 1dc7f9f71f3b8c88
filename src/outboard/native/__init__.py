"""The data plane's tools: integers and addresses, compiled by Numba, run without the GIL.

=================  ==================================================================================
`jit`              `entry`, `jitable`: one source that runs compiled, uncompiled, and without Numba
`machine_code`     object files: made by Numba, loaded without it
`memory`           loads, stores, fences, copies, by address
`libc`             system calls and the clock
`words`            blocks of 64-bit words that Python and compiled code share
`poller`           `Poller`: a thread without the GIL: start, pause, stop, statistics
`ring`             a ring of messages between a poller and Python
`translation`      guest addresses to ours, bounds-checked
`guard`            memory that its owner may take away
`uring`            io_uring
=================  ==================================================================================
"""
