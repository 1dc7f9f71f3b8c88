"""One declaration: the check of values, their JSON schema, and the text they are on a command line."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outboard.operation.declared import Between, Misfit, Size, build, check, fields_of, from_text, schema


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A wheel.

    Parameters
    ----------
    size
        How large,
        in bytes.
    """

    size: Size
    spokes: Annotated[int, Between(0, 64)] = 32


@dataclass(frozen=True, kw_only=True)
class Car(Wheel):
    """A car.

    Parameters
    ----------
    wheels
        What it goes on.
    """

    wheels: tuple[Wheel, ...] = ()
    named: dict[str, Wheel] | None = None
    colour: Literal["red", "blue"] = "red"
    open: bool = False
    load: float = 0.0
    name: str = ""


def test_what_fits_becomes_the_dataclass() -> None:
    car = build(
        Car,
        {"size": "4K", "wheels": [{"size": 1, "spokes": 0}], "named": {"spare": {"size": "1M"}}, "load": 1},
    )
    assert car == Car(
        size=4096, wheels=(Wheel(size=1, spokes=0),), named={"spare": Wheel(size=1 << 20)}, load=1.0
    )


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "size is missing: How large, in bytes."),
        ({"size": 1, "spoke": 2}, "spoke means nothing: did you mean spokes?"),
        (
            {"size": 1, "zzz": 2},
            "zzz means nothing: there are size, spokes, wheels, named, colour, open, load, name",
        ),
        (
            {"size": 1, "z" * 99: 2},
            f"{'z' * 60}... means nothing: there are size, spokes, wheels, named, col",
        ),
        ({"size": "big"}, "size: 'big' is not a size: write a number and K, M, G or T, as in 256M"),
        ({"size": True}, "size is True: it is a whole number"),
        ({"size": 1, "spokes": 65}, "spokes is 65: it is 0 to 64"),
        ({"size": 1, "spokes": 1.0}, "spokes is 1.0: it is a whole number"),
        ({"size": 1, "colour": "green"}, "colour is 'green': it is one of red, blue"),
        ({"size": 1, "open": 1}, "open is 1: it is true or false"),
        ({"size": 1, "load": "heavy"}, "load is 'heavy': it is a number"),
        ({"size": 1, "wheels": {}}, "wheels is {}: it is a list"),
        ({"size": 1, "wheels": [{"size": 1}, 3]}, "wheels[1] is 3: it is a table"),
        ({"size": 1, "wheels": [{"size": 1, "spokes": -1}]}, "wheels[0].spokes is -1: it is 0 to 64"),
        ({"size": 1, "named": {"spare": {}}}, "named.spare.size is missing: How large, in bytes."),
        ({"size": 1, "name": "a\0b"}, r"name is 'a\x00b': it is text, of characters that names can have"),
        ({"size": 1, "name": "\ud800"}, r"name is '\ud800': it is text, of characters that names"),
        ({"size": 1, "colour": "x" * 500}, f"colour is '{'x' * 59}...: it is one of red, blue"),
    ],
)
def test_what_does_not_fit_is_told_with_its_place_its_value_and_what_there_may_be(
    given: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(Misfit) as told:
        build(Car, given)
    assert str(told.value).startswith(sentence)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_value_fits_or_is_a_misfit(value: Any) -> None:
    for each in fields_of(Car):
        try:
            found = check(each.kind, value, "it")
        except Misfit:
            continue
        assert check(each.kind, found, "it") == found or found != found


def test_a_function_says_what_it_takes_behind_its_first_parameter() -> None:
    def paint(car: Car, coats: Annotated[int, "How often."], options: Wheel, hot: bool = True) -> None:
        pass

    assert [(each.name, each.required, each.meaning) for each in fields_of(paint)] == [
        ("coats", True, "How often."),
        ("size", True, "How large, in bytes."),
        ("spokes", False, ""),
        ("hot", False, ""),
    ]


def test_the_schema_says_the_same() -> None:
    assert schema(Wheel) == {
        "type": "object",
        "properties": {
            "size": {
                "type": ["integer", "string"],
                "pattern": "^[0-9.]+ *[KMGTP]?(i?B)?$",
                "description": "How large, in bytes.",
            },
            "spokes": {"type": "integer", "minimum": 0, "maximum": 64, "default": 32},
        },
        "required": ["size"],
        "additionalProperties": False,
    }
    assert schema(dict[str, Wheel] | None)["anyOf"][1] == {"type": "null"}
    assert schema(Literal["a", "b"]) == {"enum": ["a", "b"]}
    assert schema(tuple[str, ...]) == {"type": "array", "items": {"type": "string"}}


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (int, "7", 7),
        (int, "many", "many"),
        (bool, "off", False),
        (bool, "perhaps", "perhaps"),
        (float, "1.5", 1.5),
        (int | None, "0x10", 16),
        (Literal[1, 2], "2", 2),
        (Literal[1, 2], "3", "3"),
        (tuple[str, ...], "a,b", ["a", "b"]),
        (dict[str, int], '{"a": 1}', {"a": 1}),
        (str, "1", "1"),
    ],
)
def test_text_becomes_what_the_declaration_wants(kind: Any, text: str, value: Any) -> None:
    assert from_text(kind, text) == value
