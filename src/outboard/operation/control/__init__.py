"""The control socket: JSON-RPC 2.0, a line each way, over a UNIX stream socket.

========================  ==================================================================
`rpc`                     lines in, lines out; no socket
`server`, `client`        the two ends
`method`, `methods`       functions as methods, and the table of them
``about_...``             those functions
========================  ==================================================================
"""
