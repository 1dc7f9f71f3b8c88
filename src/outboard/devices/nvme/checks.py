"""What whoever makes a controller may give."""

from outboard.errors import DefinitionError


def check_number(what: str, value: int, low: int, high: int) -> None:
    """Raise `DefinitionError` for a number that is out of bounds."""
    if not low <= value <= high:
        raise DefinitionError(f"{what} is {value}: it is {low} to {high}")


def check_text(what: str, text: str, limit: int) -> None:
    """Raise `DefinitionError` for a text that Identify has no place for."""
    if not (0 < len(text) <= limit and text.isascii() and text.isprintable()):
        raise DefinitionError(f"{what} {text!r}: it has 1 to {limit} printable ASCII characters")
