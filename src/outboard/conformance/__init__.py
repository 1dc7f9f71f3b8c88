"""Is it a vfio-user server, is it a vfio-user client: judged point by point, on the wire.

`judge_server` connects to a socket as a client made of bytes, `judge_client` listens on one as a server made
of bytes. Each point has an id, the sentence it stands for, and who needs it (see `Profile`). Nothing of the
package's own protocol code is used. The command is ``outboard conformance``.
"""

from outboard.conformance.client import client_points, judge_client
from outboard.conformance.judge import ServerPoint, judge_server, server_points
from outboard.conformance.points import MEANINGS, Outcome, Point, Profile, Verdict
from outboard.conformance.report import Report

__all__ = [
    "MEANINGS",
    "Outcome",
    "Point",
    "Profile",
    "Report",
    "ServerPoint",
    "Verdict",
    "client_points",
    "judge_client",
    "judge_server",
    "server_points",
]
