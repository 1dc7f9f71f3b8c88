"""The program: which commands there are, and how each failure becomes one line and an exit status."""

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from cyclopts import App, Parameter
from rich.console import Console
from rich.markup import escape

from outboard.cli import COMMANDS
from outboard.errors import OutboardError

FAILED, INTERRUPTED = 1, 130
EPILOGUE = "`outboard --debug COMMAND ...` prints the traceback of a failure."


def run(arguments: Sequence[str], width: int | None = None) -> int:
    """Run one command line; return the exit status (a command may also raise `SystemExit`)."""
    debug = list(arguments[:1]) == ["--debug"]
    arguments = arguments[debug:]
    chosen = next(iter(arguments), None)
    try:
        status = application(chosen, width)(arguments, result_action="return_value")
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output went away; Python would complain once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (OutboardError, OSError) as error:
        if debug:
            raise
        Console(stderr=True, soft_wrap=True).print(describe(error))
        return FAILED
    return status if isinstance(status, int) else 0


def describe(error: OutboardError | OSError) -> str:
    """One line, in rich's markup: what went wrong, and whose fault it is."""
    if isinstance(error, OutboardError):
        return f"[bold red]outboard: {escape(error.sentence)}[/] [dim](the fault is {error.fault})[/]"
    named = f"{error.filename}: " if error.filename else ""
    return f"[bold red]outboard: {escape(named + (error.strerror or str(error)))}[/]"


def application(chosen: str | None = None, width: int | None = None) -> App:
    """The commands, none imported yet; all but the ``chosen`` one are known by their summary."""
    app = App(
        name="outboard",
        help="PCI devices in Python, outside the virtual machine monitor.",
        help_epilogue=EPILOGUE,
        version=lambda: version("outboard"),
        help_format="markdown",
        console=Console(width=width),
        suppress_keyboard_interrupt=False,
        # A list that is not given is empty already: no --empty-... options.
        default_parameter=Parameter(negative_iterable=()),
    )
    for name, summary in COMMANDS.items():
        app.command(f"outboard.cli.{name}:{name}", name=name, help=None if name == chosen else summary)
    return app
