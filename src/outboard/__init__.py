"""PCI devices in Python, outside the virtual machine monitor."""

__version__ = "0.1.0"
