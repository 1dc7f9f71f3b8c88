"""A method of the control socket, made from a function: its signature and docstring say everything.

The function's first parameter is the service, or the one subsystem that is meant, in whose turn it then runs;
the others are the method's. What it returns is JSON, or dataclasses.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any, Self, cast, get_type_hints

from outboard.errors import DefinitionError, RequestRefused
from outboard.operation.declared import Field, Misfit, fields_of, schema_of, summary_of, take
from outboard.operation.service import Served, Service

Functions = dict[str, Callable[..., Any]]
"""The functions of a module, by the names of their methods."""

SUBSYSTEM = Field(
    "subsystem", str | None, None, "The subsystem, by its name; it may be left out where there is one only."
)


@dataclass(frozen=True)
class Method:
    """What a request named ``name`` does.

    ``fields`` are its parameters in their order, by which a list of them is understood too.
    ``of_subsystem`` says whether it is about one subsystem.
    """

    name: str
    function: Callable[..., Any]
    fields: tuple[Field, ...]
    summary: str
    of_subsystem: bool

    @classmethod
    def of(cls, name: str, function: Callable[..., Any]) -> Self:
        """The method that ``function`` is."""
        of_subsystem = next(iter(get_type_hints(function).values())) is Served
        fields = fields_of(function) + ((SUBSYSTEM,) if of_subsystem else ())
        return cls(name, function, fields, summary_of(function), of_subsystem)

    def __call__(self, service: "Service", params: Any) -> Any:
        """Check ``params``, and do it. Raises `Misfit` and `OutboardError`."""
        given = take(self.fields, self._by_name(params))
        try:
            return self._do(service, given)
        except DefinitionError as error:
            # Who asks for what cannot be is no author of a device.
            raise RequestRefused(error.sentence) from error

    def _do(self, service: "Service", given: dict[str, Any]) -> Any:
        if not self.of_subsystem:
            return self.function(service, **self._arguments(given))
        served = service.named(given.pop("subsystem", None))
        with served.subsystem.turn:
            return self.function(served, **self._arguments(given))

    @property
    def description(self) -> dict[str, Any]:
        """What it does and takes, as JSON."""
        return {"name": self.name, "summary": self.summary, "params": schema_of(self.fields)}

    def _by_name(self, params: Any) -> Mapping[str, Any]:
        if not isinstance(params, list):
            return params or {}
        if len(params) > len(self.fields):
            raise Misfit(f"{self.name} takes {len(self.fields)} parameters, not {len(params)}")
        return {each.name: value for each, value in zip(self.fields, params, strict=False)}

    def _arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        """As the function takes them: those that are fields of a dataclass, as that."""
        kinds = {name: kind for name, kind in get_type_hints(self.function).items() if name != "return"}
        for name, kind in list(kinds.items())[1:]:
            if is_dataclass(kind):
                make = cast(Callable[..., Any], kind)
                inner = {each.name for each in fields_of(kind)}
                given = {
                    **{each: value for each, value in given.items() if each not in inner},
                    name: make(**{each: value for each, value in given.items() if each in inner}),
                }
        return given
