"""The device's side of vfio-user: requests in, a device asked, answers out.

* `server`: a UNIX socket and one client at a time: `serve`, `serve_all`, `Server`
* `background`: in whose thread it runs
* `session`: one client's conversation, without a socket
* `requests`: what each command asks of the device
* `remote_dma`: guest memory reached by messages
* `twin`: the second socket, for these messages alone
* `profiles`: what clients do differently, and how they are told apart
* `full_replies`: answers to a client that does not look at errors
"""

from outboard.server.server import Server, serve, serve_all
from outboard.server.session import Session

__all__ = ["Server", "Session", "serve", "serve_all"]
