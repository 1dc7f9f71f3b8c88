"""What is done with namespaces and with the drive as a whole (NVMe Base 2.0, 5 and 8).

Namespaces are created, attached, formatted, resized and write protected; the drive is sanitized, tested, and
given other firmware. What takes long is an `Operation` in the `background`, whose end is told by the host's
command or by an event. `namespace_commands`, `drive_commands` and `firmware_commands` are what hosts say;
`pool` is where new namespaces come from, `inventory` what is known of all of them over a power cycle,
`setting` how one is formatted. `erasing` has the steps of `formatting` and `sanitizing`.
"""
