"""The machine's own Debian mirror, read from apt's configuration (sources.list(5)).

No mirror is named in this package: whatever the machine installs its software from, with the keys
it already trusts, is what guests are made of. ``OUTBOARD_DEBIAN_MIRROR`` names one for a machine
that has none of its own (Ubuntu, a derivative, a container without sources).
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from outboard.errors import SetupError

MIRROR_VARIABLE = "OUTBOARD_DEBIAN_MIRROR"
KEYRINGS = (
    Path("/usr/share/keyrings/debian-archive-keyring.pgp"),
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
)

_ONE_LINE = re.compile(
    r"^deb\s+(?:\[(?P<options>[^]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s*(?P<components>.*)$"
)
_DEBIAN = re.compile(r"/debian([/.]|$)")


@dataclass(frozen=True, slots=True)
class Source:
    """One place that apt takes packages from.

    ``signed_by`` is the value of apt's Signed-By: a path, or a key itself over several lines; None
    means every key that apt trusts.
    """

    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    signed_by: str | None = None

    def stanza(self, *suites: str) -> str:
        """The same place as a paragraph of a ``.sources`` file, for other ``suites``."""
        lines = ["Types: deb", f"URIs: {self.uri}", f"Suites: {' '.join(suites)}", "Components: main"]
        lines.append("Targets: Packages")
        if self.signed_by is not None:
            lines.append(f"Signed-By: {self.signed_by}")
        return "\n".join(lines) + "\n"


def parse_one_line(text: str) -> Iterator[Source]:
    """The sources of a ``sources.list`` in the one-line style; what is not one is passed over.

    >>> next(parse_one_line("deb [arch=amd64 signed-by=/k.gpg] http://mirror.test/debian stable main"))
    Source(uri='http://mirror.test/debian', suites=('stable',), components=('main',), signed_by='/k.gpg')
    """
    for line in text.splitlines():
        if not (match := _ONE_LINE.match(line.partition("#")[0].strip())):
            continue
        options = dict(pair.split("=", 1) for pair in (match["options"] or "").split() if "=" in pair)
        components = tuple(match["components"].split())
        yield Source(match["uri"], (match["suite"],), components, options.get("signed-by"))


def parse_deb822(text: str) -> Iterator[Source]:
    """The sources of a ``.sources`` file (deb822 style), one for each URI of each enabled paragraph."""
    for fields in _paragraphs(text):
        if fields.get("enabled", "yes").lower() in ("no", "false", "0"):
            continue
        if "deb" not in fields.get("types", "").split():
            continue
        suites, components = fields.get("suites", "").split(), fields.get("components", "").split()
        for uri in fields.get("uris", "").split():
            yield Source(uri, tuple(suites), tuple(components), fields.get("signed-by"))


def _paragraphs(text: str) -> Iterator[Mapping[str, str]]:
    lines = [line.rstrip() for line in text.splitlines() if not line.startswith("#")]
    for paragraph in re.split(r"\n\n+", "\n".join(lines)):
        fields: dict[str, str] = {}
        name = ""
        for line in paragraph.splitlines():
            if line[:1].isspace() and name:
                fields[name] += "\n" + line
            elif ":" in line:
                key, _, value = line.partition(":")
                name = key.strip().lower()
                fields[name] = value.strip()
        if fields:
            yield fields


def sources(etc: Path = Path("/etc/apt")) -> Iterator[Source]:
    """Every package source that the apt configuration in ``etc`` holds."""
    files = [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]
    for path in files:
        parse = {".list": parse_one_line, ".sources": parse_deb822}.get(path.suffix)
        if parse is not None and path.is_file():
            yield from parse(path.read_text(errors="replace"))


def debian_source(etc: Path = Path("/etc/apt"), *, keyrings: tuple[Path, ...] = KEYRINGS) -> Source:
    """The Debian mirror this machine uses, with the key it trusts for it.

    Raises:
        SetupError: apt's configuration names no Debian mirror and the variable names none either.
    """
    keyring = next((str(path) for path in keyrings if path.exists()), None)
    if mirror := os.environ.get(MIRROR_VARIABLE):
        return Source(mirror, (), ("main",), keyring)
    for source in sources(etc):
        security = any("security" in suite for suite in source.suites)
        if _DEBIAN.search(source.uri) and "main" in source.components and not security:
            return Source(source.uri, source.suites, source.components, source.signed_by or keyring)
    raise SetupError(
        f"no Debian mirror among the apt sources in {etc}, and a guest is made of Debian's packages: "
        f"run `apt-get install debian-archive-keyring` and "
        f"`export {MIRROR_VARIABLE}=<URI of a Debian mirror>`"
    )
