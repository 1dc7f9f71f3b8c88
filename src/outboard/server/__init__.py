"""The device's side of vfio-user: requests in, a device asked, answers out.

* `server`: a UNIX socket and one client at a time: `serve`, `serve_all`, `Server`
* `session`: one client's conversation, without a socket
* `requests`: what each command asks of the device
* `remote_dma`: guest memory reached by messages
"""

from outboard.server.server import Server, serve, serve_all
from outboard.server.session import Session

__all__ = ["Server", "Session", "serve", "serve_all"]
