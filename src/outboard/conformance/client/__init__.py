"""Every point a client can be judged by, and the connections that show them."""

from outboard.conformance.client.judge import client_points, judge_client

__all__ = ["client_points", "judge_client"]
