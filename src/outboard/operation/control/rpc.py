"""JSON-RPC 2.0, without a socket: a line of bytes in, the line that answers it out.

https://www.jsonrpc.org/specification. A line holds one request, or a batch of them, and has no line feed in
it. Nobody is trusted: any bytes are answered, and what is kept of them is bounded.
"""

import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

from outboard.errors import OutboardError
from outboard.operation.declared import Misfit, nearest

log = logging.getLogger(__name__)

PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, INVALID_PARAMS, INTERNAL_ERROR = (
    -32700,
    -32600,
    -32601,
    -32602,
    -32603,
)
FAILED = -32000
"""A well-formed request that could not be carried out; ``data.fault`` says whose fault that was."""
BUSY = -32001
"""Too many clients."""

MOST_LINE = 1 << 20
"""Bytes of a line."""
MOST_BATCH = 256
"""Requests in a batch."""
SHOWN = 60

Procedure = Callable[[Any], Any]
"""Takes the ``params`` of a request (a list, a dictionary or None); returns JSON, or dataclasses."""


class Dispatcher:
    r"""Answers requests with ``procedures``, by the names of the methods.

    >>> Dispatcher({"greet": lambda params: "hello"}).answer(b'{"jsonrpc":"2.0","method":"greet","id":1}')
    b'{"jsonrpc":"2.0","result":"hello","id":1}\n'
    """

    def __init__(self, procedures: Mapping[str, Procedure]) -> None:
        self._procedures = procedures

    def answer(self, line: bytes) -> bytes:
        """The line that answers ``line``; empty if nothing in it wants an answer."""
        try:
            document = json.loads(line.decode(), parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            return encoded(failure(None, PARSE_ERROR, f"not JSON: {error}"[: 2 * SHOWN]))
        if not isinstance(document, list):
            answer = self._handle(document)
            return encoded(answer) if answer is not None else b""
        if not 0 < len(document) <= MOST_BATCH:
            sentence = f"a batch of {len(document)} requests: it has 1 to {MOST_BATCH}"
            return encoded(failure(None, INVALID_REQUEST, sentence))
        answers = [answer for each in document if (answer := self._handle(each)) is not None]
        return encoded(answers) if answers else b""

    def _handle(self, request: Any) -> dict[str, Any] | None:
        """The answer to one request; None to a notification."""
        problem = _problem(request)
        if problem:
            return failure(_id_of(request), INVALID_REQUEST, problem)
        answer = self._execute(request)
        return answer if "id" in request else None

    def _execute(self, request: dict[str, Any]) -> dict[str, Any]:
        name, id = request["method"], request.get("id")
        procedure = self._procedures.get(name)
        if procedure is None:
            near = nearest(name[:SHOWN], self._procedures)
            instead = f"did you mean {near}?" if near else "rpc.discover tells which there are"
            return failure(id, METHOD_NOT_FOUND, f"there is no method {name[:SHOWN]!r}: {instead}")
        try:
            return {"jsonrpc": "2.0", "result": procedure(request.get("params")), "id": id}
        except Misfit as error:
            return failure(id, INVALID_PARAMS, str(error))
        except OutboardError as error:
            data = {"kind": type(error).__name__, "fault": error.fault.name.lower()}
            return failure(id, FAILED, error.sentence, data)
        except Exception as error:
            log.exception("%s failed", name)
            return failure(id, INTERNAL_ERROR, f"{type(error).__name__}, see the log of the server")


def failure(id: Any, code: int, message: str, data: Any = None) -> dict[str, Any]:
    """An error response."""
    error: dict[str, Any] = {"code": code, "message": message}
    if data is not None:
        error["data"] = data
    return {"jsonrpc": "2.0", "error": error, "id": id}


def encoded(document: Any) -> bytes:
    """One line."""
    return json.dumps(document, separators=(",", ":"), default=_plain).encode() + b"\n"


def _problem(request: Any) -> str:
    """Why ``request`` is none; empty if it is one."""
    if not isinstance(request, dict):
        return "a request is an object"
    if request.get("jsonrpc") != "2.0":
        return 'a request has "jsonrpc": "2.0"'
    if not isinstance(request.get("method"), str):
        return "a request names its method"
    if not isinstance(request.get("params", {}), dict | list):
        return "params are an object or a list"
    if "id" in request and not _is_id(request["id"]):
        return "an id is text, a number or null"
    return ""


def _is_id(id: Any) -> bool:
    # 1e999 is JSON, and infinite to Python, which would answer it as what is none.
    if isinstance(id, float):
        return math.isfinite(id)
    return id is None or (isinstance(id, str | int) and not isinstance(id, bool))


def _id_of(request: Any) -> Any:
    id = request.get("id") if isinstance(request, dict) else None
    return id if _is_id(id) else None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no value of JSON")


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return str(value)
