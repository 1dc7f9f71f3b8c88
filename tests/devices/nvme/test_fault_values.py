"""What a fault can say, in Python and in JSON, and how it is told what it cannot."""

import json
from contextlib import suppress
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outboard.devices.nvme import Fault
from outboard.devices.nvme.spec import AdminOpcode, IoOpcode
from outboard.devices.nvme.status import Status
from outboard.errors import DefinitionError

CONDITIONS: dict[str, st.SearchStrategy[Any]] = {
    "nsid": st.integers(1, 0xFFFF_FFFE),
    "controller": st.integers(1, 0xFFEF),
    "probability": st.floats(0, 1),
    "seed": st.integers(-(1 << 63), (1 << 64) - 1),
    "opcode": st.lists(st.sampled_from([*IoOpcode]).map(lambda each: each.name.lower()), min_size=1),
    "lba": st.tuples(st.integers(0, 99), st.integers(100, (1 << 64) - 1)).map(list),
    "count": st.integers(1, 99),
    "every": st.integers(1, 99),
    "delay": st.one_of(
        st.floats(0, 1e6),
        st.tuples(st.floats(0, 1), st.floats(1, 2)).map(list),
        st.tuples(st.just("exponential"), st.floats(0, 9)).map(list),
        st.tuples(st.just("normal"), st.floats(0, 9), st.floats(0, 9)).map(list),
    ),
}


@given(st.fixed_dictionaries({"flip": st.integers(1, 4096)}, optional=CONDITIONS))
def test_json_gives_the_same_fault_back(document: dict[str, Any]) -> None:
    fault = Fault.from_json(json.loads(json.dumps(document)))
    assert Fault.from_json(json.loads(json.dumps(fault.to_json()))) == fault
    assert all(seconds >= 0 for seconds in [fault.seconds(Random(1)), fault.seconds(Random(2))])


def test_opcodes_are_names_numbers_or_members_and_imply_the_queue() -> None:
    names = Fault(opcode=("write zeroes", "zone-append"), lie=True)
    assert names == Fault(opcode=(0x08, IoOpcode.ZONE_APPEND), queue="io", lie=True)
    assert names.to_json()["opcode"] == ["write_zeroes", "zone_append"]
    assert Fault(opcode=AdminOpcode.IDENTIFY, delay=1).queue == "admin"
    assert Fault(opcode=0xC1, queue="admin", delay=1).to_json()["opcode"] == [0xC1]
    assert Fault(delay=1).queue is None
    assert Fault(lba=7, delay=1).queue == "io", "the admin queue knows no blocks"


@pytest.mark.parametrize(
    ("status", "more", "field"),
    [
        ((2, 0x81), {}, 0x281),
        (Status.UNRECOVERED_READ_ERROR, {"dnr": True}, 0x4281),
        ("unrecovered read error", {"dnr": True, "more": True, "crd": 3}, 0x7A81),
        ((7, 0xFF), {"crd": 1}, 0xFFF),
        ((0, 0), {}, 0),
    ],
)
def test_the_status_field_is_what_was_asked_for(status: Any, more: dict[str, Any], field: int) -> None:
    assert Fault(status=status, **more).field == field
    assert Fault(delay=1).field is None


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({}, "does nothing.*status"),
        ({"nsid": 1}, "does nothing"),
        ([], "JSON object"),
        ({"opcod": "read"}, "no 'opcod'.*opcode"),
        ({"opcode": "raed", "lie": True}, "opcode is 'raed'"),
        ({"opcode": 2, "lie": True}, "opcode is 0x2.*which queue"),
        ({"opcode": 256, "queue": "io", "lie": True}, "opcode is 256"),
        ({"opcode": True, "queue": "io", "lie": True}, "opcode is True"),
        ({"opcode": "identify", "queue": "io", "delay": 1}, "opcode is 'identify', which is no io"),
        ({"opcode": ["read", "identify"], "delay": 1}, "'identify', which is no io"),
        ({"opcode": {}, "queue": "io", "delay": 1}, "opcode is {}"),
        ({"queue": "iO", "delay": 1}, "queue is 'iO'.*admin, io"),
        ({"delay": 10**400}, "delay is 1.*numbers are from 0 to"),
        ({"nsid": 0, "delay": 1}, "nsid is 0"),
        ({"nsid": "1", "delay": 1}, "nsid is '1'"),
        ({"lba": [9, 8], "delay": 1}, "lba is .*before the first"),
        ({"lba": [1, 2, 3], "delay": 1}, "lba is"),
        ({"lba": -1, "delay": 1}, "lba is -1"),
        ({"lba": 1, "queue": "admin", "delay": 1}, "lba is for I/O"),
        ({"qid": 0, "queue": "io", "delay": 1}, "qid is 0"),
        ({"qid": 1, "queue": "admin", "delay": 1}, "qid is 1"),
        ({"controller": 0x10000, "delay": 1}, "controller is"),
        ({"nth": 0, "delay": 1}, "nth is 0"),
        ({"nth": 1, "every": 2, "delay": 1}, "nth leaves no room for its every"),
        ({"probability": 1.5, "delay": 1}, "probability is 1.5"),
        ({"probability": float("nan"), "delay": 1}, "probability is nan"),
        ({"seed": 1.0, "delay": 1}, "seed is 1.0"),
        ({"status": [8, 0]}, "status is .*SCT"),
        ({"status": [2]}, "status is"),
        ({"status": ["2", 1]}, "status is"),
        ({"status": "nonsense"}, "status is 'nonsense'"),
        ({"status": 0x800}, "status is"),
        ({"crd": 4, "status": [0, 2]}, "crd is 4"),
        ({"dnr": True, "delay": 1}, "dnr is part of its status"),
        ({"dnr": 1, "status": [0, 2]}, "dnr is 1: it is true or false"),
        ({"delay": -1}, "delay is -1"),
        ({"delay": [2, 1]}, "delay is .*above"),
        ({"delay": ["poisson", 1]}, "delay is .*exponential"),
        ({"delay": ["normal", 1]}, "delay is"),
        ({"delay": float("inf")}, "delay is inf"),
        ({"delay": 1e10}, "delay is 10000000000.0: numbers are from 0 to 1000000000"),
        ({"delay": [0, 10**400]}, "delay is .*numbers are"),
        ({"probability": 10**400, "delay": 1}, "probability is"),
        ({"hang": "always"}, "hang is 'always'.*reset, abort"),
        ({"hang": "reset", "status": [0, 2]}, "hang leaves no room for its status"),
        ({"torn": 1, "torn_bytes": 2}, "torn leaves no room for its torn_bytes"),
        ({"guard": "valid", "lie": True}, "guard is part of its flip"),
        ({"guard": "right", "flip": 1}, "guard is 'right'"),
        ({"flip": 1, "opcode": "identify"}, "flip is for I/O"),
        ({"fatal": True, "removal": True}, "fatal leaves no room for its removal"),
        ({"lost_completion": True, "lost_interrupt": True}, "lost_completion leaves no room"),
    ],
)
def test_what_is_no_fault_is_refused_with_the_key_that_is_wrong(document: Any, words: str) -> None:
    with pytest.raises(DefinitionError, match=words):
        Fault.from_json(document)


@given(
    st.dictionaries(
        st.sampled_from([*Fault(delay=1).__dataclass_fields__]),
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
            lambda inner: st.lists(inner, max_size=3),
            max_leaves=4,
        ),
    )
)
def test_any_json_is_a_fault_or_is_refused(document: dict[str, Any]) -> None:
    with suppress(DefinitionError):
        fault = Fault.from_json(document)
        assert Fault.from_json(fault.to_json()) == fault
