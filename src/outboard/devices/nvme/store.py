"""What a subsystem remembers over a power cycle: saved features, counters, reservations, zones, ...

A JSON document of named sections, one a line, each of which belongs to one module. With a path it is a file,
replaced as a whole (written beside it, made durable, renamed), so that after a crash it is the old one or the
new one.
Without a path it lives as long as the subsystem.
"""

import json
import os
from pathlib import Path
from typing import Any

from outboard.devices.nvme.claims import claim
from outboard.errors import SetupError

Document = dict[str, Any]


class Store:
    """The sections kept at ``path``; a file that is not there yet is an empty document.

    No other process may keep there meanwhile, until it is closed. Raises `SetupError` if another one does, or
    what is there cannot be read.

    >>> store = Store()
    >>> store.put("greeting", {"words": ["hello"]})
    >>> store.get("greeting")["words"]
    ['hello']
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._sections: Document = {}
        self._texts: dict[str, str] = {}
        """The sections as they are written: one that is large costs only when it changes."""
        self._behind = False
        self._claim = claim(path) if path is not None else None
        if path is not None:
            self._set(_load(path))

    def close(self) -> None:
        """Nothing is kept any more: another process may. Closing twice is harmless."""
        self._claim = None

    def get(self, section: str, default: Any = None) -> Any:
        """What was put there last, or ``default``: to be looked at, not to be changed."""
        return self._sections.get(section, default)

    def section(self, name: str) -> Document:
        """A section that is a document of its own; an empty one if it is none, or not there."""
        section = self._sections.get(name)
        return section if isinstance(section, dict) else {}

    def change(self, name: str, key: str, value: Any, *, anyway: bool = False) -> None:
        """Keep ``value`` under ``key`` of such a section, as `put` does."""
        self.put(name, {**self.section(name), key: value}, anyway=anyway)

    def put(self, section: str, value: Any, *, anyway: bool = False) -> None:
        """Keep ``value`` (JSON); it is durable when this returns.

        Raises `SetupError` if it cannot be written. What was there before is then there still, unless the
        value is to be there ``anyway``: it is durable with whatever is kept next.
        """
        text = json.dumps(value)
        if self._behind or self._texts.get(section) != text:
            before = self._sections, self._texts
            # A copy of its own: the owner may go on changing what it gave.
            self._sections = {**self._sections, section: json.loads(text)}
            self._texts = {**self._texts, section: text}
            self._behind = True
            try:
                self._write()
            except SetupError:
                if not anyway:
                    self._sections, self._texts = before
                raise

    @property
    def document(self) -> Document:
        """Everything, to be moved to another process."""
        return self._sections

    @document.setter
    def document(self, document: Document) -> None:
        self._set(document)
        self._behind = True
        self._write()

    def _set(self, document: Document) -> None:
        self._sections = dict(document)
        self._texts = {name: json.dumps(section) for name, section in document.items()}

    def _write(self) -> None:
        if self.path is None:
            self._behind = False
            return
        beside = self.path.with_name(self.path.name + ".new")
        try:
            with open(beside, "w", encoding="utf-8") as file:
                lines = (f" {json.dumps(name)}: {text}" for name, text in self._texts.items())
                file.write("{\n" + ",\n".join(lines) + "\n}\n")
                file.flush()
                os.fsync(file.fileno())
            beside.replace(self.path)
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise SetupError(f"cannot keep the state in {self.path}: {error.strerror}") from error
        self._behind = False


def _load(path: Path) -> Document:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise SetupError(f"{path} is not the state of a subsystem: {error}") from error
    if not isinstance(document, dict):
        raise SetupError(f"{path} is not the state of a subsystem: move it away to begin anew")
    return document
