"""Tools for testing devices, and drivers with them. Public; imports no test framework.

* `client`: `TestClient`: a client and a device in one thread, without a socket
* `faults`: `fail`: an NVMe controller that fails as a test wants it, for the length of a block
* `regression`: `replay`: a recorded conversation as a regression test
* `guest`: virtual machines whose unmodified drivers use the device
* `tshark`: tshark that decodes captures of vfio-user
"""

from outboard.testing.client import TestClient
from outboard.testing.regression import replay

__all__ = ["TestClient", "replay"]
