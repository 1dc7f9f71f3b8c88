"""The store of a subsystem while its disk is full, or gone."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from outboard.devices.nvme import RamPool, Store, Subsystem
from outboard.devices.nvme.reservation import Host, Reservation, keep
from outboard.errors import SetupError
from outboard.storage import RamStorage

Gone = Callable[[bool], None]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "there").mkdir()
    return tmp_path / "there" / "state"


@pytest.fixture
def gone(path: Path) -> Gone:
    """The folder is gone, or back."""
    elsewhere = path.parent.with_name("elsewhere")

    def gone(yes: bool) -> None:
        folders = (path.parent, elsewhere) if yes else (elsewhere, path.parent)
        folders[0].rename(folders[1])

    return gone


def kept(path: Path) -> dict[str, object]:
    return dict(json.loads(path.read_text()))


def test_what_could_not_be_kept_is_kept_with_the_next_that_can(path: Path, gone: Gone) -> None:
    store = Store(path)
    store.put("one", 1)
    gone(True)
    with pytest.raises(SetupError, match="cannot keep"):
        store.put("one", 2)
    with pytest.raises(SetupError, match="cannot keep"):
        store.put("one", 2)
    gone(False)
    assert kept(path) == {"one": 1}
    store.put("one", 2)
    assert kept(path) == {"one": 2}


def test_a_reservation_that_could_not_be_kept_is_not_kept_later(path: Path, gone: Gone) -> None:
    store = Store(path)
    reservation = Reservation()
    reservation.register(Host(b"A" * 16, 0), 1)
    reservation.persistent = True
    gone(True)
    with pytest.raises(SetupError):
        keep(store, 1, reservation)
    gone(False)
    store.put("other", 1)
    assert kept(path) == {"other": 1}


def test_a_namespace_is_removed_although_that_cannot_be_kept(path: Path, gone: Gone) -> None:
    subsystem = Subsystem(RamStorage(1 << 20), pool=RamPool(1 << 20), store=Store(path))
    gone(True)
    subsystem.remove(1).storage.close()
    assert subsystem.namespaces == {}
    gone(False)
