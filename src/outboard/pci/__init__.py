"""What a PCI function is: configuration space, BARs and registers, capabilities, interrupts.

Knows no protocol, no socket and no `Device`. From the bottom up:

- `config_space`: the 256 or 4096 bytes, which bits may be written, what a write sets off
- `fields`: the base of everything a device class declares
- `interrupts`: INTx, MSI, MSI-X, ERR, REQ over eventfds, with mask and pending
- `registers`: registers, register arrays, bit fields, access kinds
- `bar`: BARs and the option ROM
- `capabilities`: PM, PCIe, MSI, MSI-X, vendor, serial number, raw bytes
- `function`: all declarations of one class, checked against each other and laid out
"""
