"""Finding the machine's own Debian mirror."""

from pathlib import Path

import pytest

from outboard.errors import SetupError
from outboard.testing.guest.sources import (
    MIRROR_VARIABLE,
    Source,
    debian_source,
    parse_deb822,
    parse_one_line,
)

DEB822 = """\
# made by the installer
Types: deb deb-src
URIs: http://mirror.test/debian
# an old snapshot
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /keys/debian.gpg

Types: deb
URIs: http://mirror.test/debian-security
Suites: bookworm-security
Components: main
Enabled: no

Types: deb-src
URIs: http://sources.test/debian
Suites: bookworm
Components: main
"""


@pytest.fixture
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)
    (tmp_path / "sources.list.d").mkdir()
    return tmp_path


def test_a_deb822_file_gives_its_enabled_binary_sources() -> None:
    assert list(parse_deb822(DEB822)) == [
        Source(
            "http://mirror.test/debian",
            ("bookworm", "bookworm-updates"),
            ("main", "contrib"),
            "/keys/debian.gpg",
        )
    ]


def test_a_key_written_into_the_file_is_kept_whole() -> None:
    key = "\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mDMEY\n -----END PGP PUBLIC KEY BLOCK-----"
    text = f"Types: deb\nURIs: http://m.test/debian\nSuites: stable\nComponents: main\nSigned-By:{key}\n"
    (source,) = parse_deb822(text)
    assert source.signed_by == key
    assert f"Signed-By: {key}\n" in source.stanza("trixie")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("deb http://m.test/debian stable main", Source("http://m.test/debian", ("stable",), ("main",))),
        (
            "deb [ signed-by=/k.gpg arch=amd64 ] http://m.test/debian stable main # ours",
            Source("http://m.test/debian", ("stable",), ("main",), "/k.gpg"),
        ),
    ],
)
def test_a_one_line_source_is_read(line: str, expected: Source) -> None:
    assert list(parse_one_line(line)) == [expected]


@pytest.mark.parametrize(
    "line", ["", "# deb http://m.test/debian stable main", "deb-src http://m.test/debian a b"]
)
def test_a_line_that_is_no_binary_source_is_passed_over(line: str) -> None:
    assert list(parse_one_line(line)) == []


def test_the_debian_mirror_is_picked_among_others(etc: Path) -> None:
    (etc / "sources.list").write_text("deb http://security.test/debian-security bookworm-security main\n")
    (etc / "sources.list.d" / "a.list").write_text("deb http://tools.test/apt stable main\n")
    (etc / "sources.list.d" / "b.list.disabled").write_text("deb http://no.test/debian stable main\n")
    (etc / "sources.list.d" / "c.sources").write_text(DEB822)
    source = debian_source(etc)
    assert (source.uri, source.signed_by) == ("http://mirror.test/debian", "/keys/debian.gpg")


def test_a_list_of_mirrors_counts_as_a_mirror(etc: Path) -> None:
    (etc / "sources.list").write_text("deb mirror+file:/etc/apt/mirrors/debian.list trixie main\n")
    assert debian_source(etc).uri == "mirror+file:/etc/apt/mirrors/debian.list"


def test_the_archive_keyring_is_used_where_the_source_names_no_key(etc: Path) -> None:
    keyring = etc / "debian-archive-keyring.gpg"
    keyring.touch()
    (etc / "sources.list").write_text("deb http://mirror.test/debian stable main\n")
    assert debian_source(etc, keyrings=(keyring,)).signed_by == str(keyring)


def test_the_stanza_asks_for_other_suites_of_the_same_mirror() -> None:
    stanza = Source("http://mirror.test/debian", ("bookworm",), ("main",), "/k.gpg").stanza("trixie", "sid")
    assert stanza.splitlines() == [
        "Types: deb",
        "URIs: http://mirror.test/debian",
        "Suites: trixie sid",
        "Components: main",
        "Targets: Packages",
        "Signed-By: /k.gpg",
    ]


def test_a_machine_without_a_debian_mirror_is_told_what_to_do(etc: Path) -> None:
    with pytest.raises(SetupError, match=f"export {MIRROR_VARIABLE}="):
        debian_source(etc)


def test_the_variable_names_a_mirror_for_a_machine_without(
    etc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MIRROR_VARIABLE, "http://mine.test/debian")
    assert debian_source(etc).uri == "http://mine.test/debian"
