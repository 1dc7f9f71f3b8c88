"""``python -m fuzz.inside TARGET FLAGS...``: atheris with one target in this process; ends with the process.

The flags are libFuzzer's. Everything of the package is instrumented, so that what an input reaches is seen.
"""

import logging
import sys

import atheris

from fuzz import target_named


def main() -> None:
    """Fuzz until the flags say it is enough."""
    logging.disable(logging.CRITICAL)
    _, name, *flags = sys.argv
    with atheris.instrument_imports(include=["outboard"]):
        run = target_named(name)
    # To merge, libFuzzer runs its own command line again, by way of the shell.
    atheris.Setup([f"{sys.executable} -m fuzz.inside {name}", *flags], run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
