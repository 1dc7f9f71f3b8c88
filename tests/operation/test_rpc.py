"""JSON-RPC 2.0, as its specification has it, and whatever bytes come instead."""

import json
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outboard.errors import RequestRefused
from outboard.operation.control.rpc import MOST_BATCH, Dispatcher
from outboard.operation.declared import Misfit


def subtract(params: Any) -> int:
    return int(
        params[0] - params[1] if isinstance(params, list) else params["minuend"] - params["subtrahend"]
    )


def refuse(params: Any) -> None:
    raise RequestRefused("not today")


def misfit(params: Any) -> None:
    raise Misfit("nsid is 0: it is 1 to 4")


def broken(params: Any) -> None:
    raise ZeroDivisionError


DISPATCHER = Dispatcher({"subtract": subtract, "refuse": refuse, "misfit": misfit, "broken": broken})


def answer(line: str | bytes) -> Any:
    found = DISPATCHER.answer(line.encode() if isinstance(line, str) else line)
    assert found.count(b"\n") == bool(found)
    return json.loads(found) if found else None


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            '{"jsonrpc": "2.0", "method": "subtract", "params": [42, 23], "id": 1}',
            {"jsonrpc": "2.0", "result": 19, "id": 1},
        ),
        (
            '{"jsonrpc": "2.0", "method": "subtract", "params": {"subtrahend": 3, "minuend": 22}, "id": "x"}',
            {"jsonrpc": "2.0", "result": 19, "id": "x"},
        ),
        ('{"jsonrpc": "2.0", "method": "subtract", "params": [1, 2]}', None),
        ('{"jsonrpc": "2.0", "method": "nothing"}', None),
        (
            '[{"jsonrpc": "2.0", "method": "subtract", "params": [3, 1], "id": null},'
            ' {"jsonrpc": "2.0", "method": "subtract", "params": [3, 1]}]',
            [{"jsonrpc": "2.0", "result": 2, "id": None}],
        ),
        ('[{"jsonrpc": "2.0", "method": "subtract", "params": [3, 1]}]', None),
    ],
)
def test_the_examples_of_the_specification(line: str, expected: Any) -> None:
    assert answer(line) == expected


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ('{"jsonrpc": "2.0", "method": "foobar, "params": "bar", "baz]', -32700),
        (b"\xff\xff", -32700),
        ("[" * 100_000, -32700),
        ('{"jsonrpc": "2.0", "method": "subtract", "params": [NaN, 1], "id": 1}', -32700),
        ("9" * 5000, -32700),
        ("[]", -32600),
        ("1", -32600),
        ("null", -32600),
        ('{"jsonrpc": "2.0", "method": 1, "params": "bar"}', -32600),
        ('{"jsonrpc": "2.0", "method": "subtract", "params": "bar", "id": 1}', -32600),
        ('{"jsonrpc": "2.0", "method": "subtract", "id": [1]}', -32600),
        ('{"jsonrpc": "2.0", "method": "subtract", "id": true}', -32600),
        ('{"jsonrpc": "2.0", "method": "subtract", "id": 1e999}', -32600),
        ('{"jsonrpc": "1.0", "method": "subtract", "id": 1}', -32600),
        ('{"method": "subtract", "id": 1}', -32600),
        ('{"jsonrpc": "2.0", "method": "subtrcat", "id": 1}', -32601),
        ('{"jsonrpc": "2.0", "method": "misfit", "id": 1}', -32602),
        ('{"jsonrpc": "2.0", "method": "refuse", "id": 1}', -32000),
        ("[" + ",".join(["1"] * (MOST_BATCH + 1)) + "]", -32600),
    ],
)
def test_what_cannot_be_answered_is_told_why(line: str | bytes, code: int) -> None:
    found = answer(line)
    assert found["error"]["code"] == code
    assert found["jsonrpc"] == "2.0"
    assert len(json.dumps(found)) < 500


def test_an_error_says_what_was_meant_and_whose_fault_it_is() -> None:
    assert (
        "did you mean subtract?" in answer('{"jsonrpc":"2.0","method":"subtrcat","id":1}')["error"]["message"]
    )
    refused = answer('{"jsonrpc":"2.0","method":"refuse","id":7}')
    assert refused["id"] == 7
    assert refused["error"]["message"] == "not today"
    assert refused["error"]["data"] == {"kind": "RequestRefused", "fault": "peer"}


def test_a_method_that_breaks_is_our_fault_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        assert answer('{"jsonrpc":"2.0","method":"broken","id":1}')["error"]["code"] == -32603
    assert "ZeroDivisionError" in caplog.text


def test_in_a_batch_each_request_has_its_own_end() -> None:
    found = answer('[1, {"jsonrpc":"2.0","method":"subtract","params":[2,1],"id":5}, {"foo": "boo"}]')
    assert [each.get("result", each.get("error", {}).get("code")) for each in found] == [-32600, 1, -32600]


@given(st.binary(max_size=200))
def test_any_bytes_are_answered(line: bytes) -> None:
    answer(line)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(("jsonrpc", "method", "params", "id"), JSON)))
def test_any_json_is_answered(request: dict[str, Any]) -> None:
    answer(json.dumps(request))
