"""The base of everything a device class declares: BARs, registers, capabilities, interrupts.

A field is read in two ways. On the class it is the declaration itself, which is data: documentation,
trace decoding and the driver's view are made from it. On an instance it is what the declaration means
for that one device: a value, or an object that is bound to it.
"""

from typing import Any, Generic, Self, TypeVar, overload

from outboard.errors import DefinitionError

T_co = TypeVar("T_co", covariant=True)


class Field(Generic[T_co]):
    """Something a device class declares; ``T_co`` is what an instance reads under its name.

    The bound object lives in the instance's ``__dict__`` under the field's own name, so reading it costs
    what an attribute costs. A field that computes its value overrides `__get__` and `__set__`.
    """

    name: str = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = self.name or name

    def take_over(self, replaced: "Field[Any]") -> None:
        """What this field keeps of the one of its kind that it replaces, in a subclass or an instance."""

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type) -> T_co: ...
    def __get__(self, instance: object | None, owner: type) -> Any:
        if instance is None:
            return self
        raise AttributeError(
            f"{owner.__name__}.{self.name} is not there yet: call super().__init__() before using it"
        )


def declared(owner: type) -> dict[str, Field[Any]]:
    """The fields of a class by name, inherited ones first, each in the order of its class body.

    A subclass takes a field out by setting its name to something else, for example ``msix = None``.
    """
    fields: dict[str, Field[Any]] = {}
    for cls in reversed(owner.__mro__):
        for name, value in vars(cls).items():
            if isinstance(value, Field):
                if isinstance(value, type(fields.get(name))):
                    value.take_over(fields[name])
                fields[name] = value
            else:
                fields.pop(name, None)
    return fields


def check(condition: bool, sentence: str) -> None:
    """Raise `DefinitionError` with ``sentence`` unless ``condition`` holds."""
    if not condition:
        raise DefinitionError(sentence)
