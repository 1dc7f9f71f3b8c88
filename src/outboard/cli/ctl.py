"""``outboard ctl``: asks and changes what `outboard nvme` serves, by its control socket.

Its commands are the methods of that socket: ``namespace.add`` is ``outboard ctl namespace add``.
"""

import inspect
import json as json_module
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from cyclopts import App, Parameter

from outboard.cli.ctl_report import REPORTS, as_text, console
from outboard.errors import SetupError
from outboard.operation.control.client import ControlClient
from outboard.operation.control.method import Method
from outboard.operation.control.methods import METHODS
from outboard.operation.declared import Field, from_text, is_size
from outboard.storage import format_size

VARIABLE = "OUTBOARD_CONTROL"
SHORT = {"show": "subsystem.show", "stats": "statistics.get"}
"""What is asked most often, in one word."""

ControlSocket = Annotated[Path | None, Parameter(env_var=VARIABLE, show_env_var=True)]


def connect(socket: Path | None) -> ControlClient:
    """A connection with the control socket. Raises `OutboardError`."""
    if socket is None:
        raise SetupError(f"which control socket? Give --socket PATH, or set {VARIABLE}")
    return ControlClient(socket)


@dataclass
class Session:
    """Which socket is asked, and how the answers are printed: options of all commands."""

    socket: Path | None = None
    json: bool = False

    def tell(self, method: str, params: dict[str, Any]) -> None:
        """Call a method and print its result. Raises `OutboardError`."""
        with connect(self.socket) as client:
            result = client.call(method, **params)
        if self.json:
            print(json_module.dumps(result, indent=2))
        elif result is not None:
            as_words = REPORTS.get(method, as_text)
            console().print(as_words(result))


def application(tell: Callable[[str, dict[str, Any]], None]) -> App:
    """All commands, those of a noun in an application of its own; ``tell`` carries one out."""
    app = App(name="ctl", help_format="markdown", usage="Usage: outboard ctl COMMAND [OPTIONS]")
    nouns: dict[str, list[str]] = {}
    for name in METHODS:
        noun, _, verb = name.partition(".")
        nouns.setdefault(noun, []).append(verb)
    for noun, verbs in nouns.items():
        words = {verb.replace("_", "-"): METHODS[f"{noun}.{verb}"] for verb in verbs}
        inner = App(name=noun, help=", ".join(words))
        for word, method in words.items():
            inner.command(_command(method, tell), name=word)
        app.command(inner)
    for word, name in SHORT.items():
        app.command(_command(METHODS[name], tell), name=word)

    def call(method: str, params: str = "{}", /) -> None:
        """Call any method, with its parameters as JSON.

        Parameters
        ----------
        method
            Its name, as namespace.add; rpc.discover lists them.
        params
            A JSON object.
        """
        try:
            given = json_module.loads(params)
        except ValueError as error:
            raise SetupError(f"{params} is not JSON: {error}") from error
        if not isinstance(given, dict):
            raise SetupError(f'{params} is no JSON object: write one, as {{"nsid": 1}}')
        tell(method, given)

    app.command(call)
    return app


def _command(method: Method, tell: Callable[[str, dict[str, Any]], None]) -> Callable[..., None]:
    """A function that calls a method, with the parameters of that, for cyclopts to read."""
    kinds = {each.name: each.kind for each in method.fields}
    required = [each.name for each in method.fields if each.required]

    def run(*arguments: Any, **options: Any) -> None:
        given = dict(zip(required, arguments, strict=True)) | options
        given = {name: value for name, value in given.items() if value is not None}
        for name, value in given.items():
            given[name] = from_text(kinds[name], value) if isinstance(value, str) else value
        tell(method.name, given)

    ordered = sorted(method.fields, key=lambda each: not each.required)
    # cyclopts reads the signature, not the function.
    run.__signature__ = inspect.Signature(list(map(_parameter, ordered)))  # type: ignore[attr-defined]
    run.__doc__ = method.summary
    return run


def _parameter(field: Field) -> inspect.Parameter:
    """What is required stands by its place; what is not, and is not given, is left to the server."""
    kind, meaning = _plain(field.kind), field.meaning
    if field.required:
        annotation = _told(kind, meaning)
        return inspect.Parameter(field.name, inspect.Parameter.POSITIONAL_ONLY, annotation=annotation)
    if field.default not in (None, ()):
        usual = format_size(field.default) if is_size(field.kind) else str(field.default).lower()
        meaning += f" [default: {usual}]"
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=_told(kind | None, meaning),
    )


def _told(kind: Any, meaning: str) -> Any:
    return Annotated[kind, Parameter(help=meaning)]


def _plain(kind: Any) -> Any:
    """The annotation without what narrows it, which the server checks; a size is text, a table is JSON."""
    if get_origin(kind) in (Union, UnionType):
        return _plain(next(each for each in get_args(kind) if each is not NoneType))
    if is_size(kind) or get_origin(kind) is dict:
        return str
    return _plain(get_args(kind)[0]) if get_origin(kind) is Annotated else kind


session = Session()
commands = application(session.tell)


def launch(
    *words: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    socket: ControlSocket = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> Any:
    """Ask and change what `outboard nvme` serves, while it serves.

    **Examples**

    ```
    outboard ctl --socket /tmp/control.sock show
    outboard ctl --socket /tmp/control.sock namespace add ram:256M --block-size 4K
    outboard ctl --socket /tmp/control.sock namespace remove 2
    outboard ctl --socket /tmp/control.sock stats --json
    outboard ctl --socket /tmp/control.sock call log.level '{"level": "debug"}'
    ```

    Parameters
    ----------
    *words
        The command, and what it takes.
    socket
        The control socket: what `outboard nvme` has as --control, or in its file.
    json
        Print JSON.
    """
    session.socket, session.json = socket, json
    return commands(words, result_action="return_value")


# What stands before and behind the commands' own words is taken first; the application has this one's name.
launch.__name__ = "ctl"
ctl = commands.meta
ctl.default(launch)
