"""The suite can fail: each server that is wrong in one point is found out by that point."""

from pathlib import Path

import pytest

from outboard.conformance import Outcome, judge_server
from tests.conformance.little import Little

WRITABLE = (0, 0x1000)
FAULTS = {
    "believes sizes": "P13a",
    "ids once": "P6a P8 P11 P67",
    "undescribed": "P39a P108b",
    "region five": "P78b",
    "large reads": "P78c",
    "no pba": "P85",
    "bars stay": "P72",
    "client leaks": "P117c P118b",
    "aligned maps": "P95",
    "answers posted": "P10a P83 P84c",
    "answers posted failures": "P10b",
    "answers replies": "P15a P15b",
    "any argsz": "P38a",
    "any data": "P81",
    "any data size": "P113a",
    "any feature": "P111a",
    "any index": "P48d",
    "any json": "P32a P32b",
    "any major": "P27",
    "any region": "P39b",
    "any state": "P112c",
    "back to pre-copy": "P112b",
    "bare unmap": "P97",
    "big end": "P44b P77",
    "blocks": "P65",
    "bool bytes": "P60b",
    "bool fires all": "P60a",
    "bytes needed": "P79",
    "cannot take away": "P56a P56b",
    "capability header": "P73a",
    "caps when cut": "P41a P42a",
    "command": "P70a",
    "count of nothing": "P52",
    "data in any state": "P113b",
    "descriptor a map": "P96 P117c",
    "drops unmask": "P62",
    "err masks": "P53",
    "errors without errno": "P9b P94c",
    "exact argsz": "P38b",
    "exact region": "P116a",
    "feature argsz": "P111b",
    "few maps": "P89",
    "first stays": "P57",
    "flags without size": "P39a",
    "forgets": "P117b",
    "get and set": "P111b",
    "half a chain": "P42a",
    "intx flags": "P48b",
    "io fds when cut": "P47b P47c",
    "io flags": "P47a",
    "io index": "P47d",
    "irq argsz": "P49",
    "irq fd count": "P54b",
    "irq flags": "P50",
    "irq range": "P51 P53",
    "keeps config": "P109b",
    "keeps descriptors": "P117c",
    "keeps strays": "P19 P20 P54a P54b P92e P96 P117c",
    "knows all": "P16",
    "later stay": "P56b",
    "loads badly": "P114a",
    "long version": "P29a",
    "many fds": "P29b",
    "many io fds": "P34",
    "many region fds": "P30 P34 P41b P44a P44b",
    "map argsz": "P92a",
    "map flags": "P92d",
    "map of nothing": "P92b",
    "map of two": "P92e",
    "map wraps": "P92c",
    "maps need descriptors": "P91",
    "minor two": "P26a P26b",
    "msix stays off": "P73b",
    "multi backwards": "P84a P84c",
    "multi count": "P84b",
    "neighbour": "P55 P57 P58 P60a P64",
    "no empty vector": "P56a P59 P66",
    "no eventfd": "P48a",
    "no json": "P28 P29a P29b P29c P35a P35b",
    "no line": "P71 P83 P84a P84c P117b",
    "no masks": "P61",
    "no multi": "P84a",
    "no power": "P74a",
    "no reset": "P37b P108a P109a P109b P110",
    "no retry": "P44a P44b",
    "no sizing": "P68",
    "no stop copy": "P112a",
    "no unmap all": "P98c",
    "noresize": "P48c",
    "not pci": "P37a",
    "odd area": "P43 P44a P44b",
    "offers multi": "P29c",
    "one array": "P64",
    "overlap": "P94b",
    "overlap errno": "P94c",
    "own memory": "P44b",
    "padded data": "P113c",
    "payload in errors": "P9a",
    "phantom rom": "P69",
    "read-only fails": "P76",
    "reports unasked": "P116b",
    "reset unmaps": "P109a",
    "serves before version": "P25",
    "short body": "P6a",
    "short file": "P44a P44b P77",
    "short header": "P5 P54a P54b P55 P56a P56b P57 P58 P59 P60a P62 P64 P92e",
    "size in the stream": "P13b",
    "status": "P70b",
    "stays enabled": "P58",
    "stray irq fds": "P54a",
    "strict keys": "P31",
    "table in area": "P45",
    "twin index": "P35b",
    "twin unasked": "P29a P35a P117c P118b",
    "unmap anything": "P94b P98a P98b P98c P117a",
    "unmap flags": "P98c P98d",
    "unmap parts": "P98b",
    "untyped errors": "P9b",
    "vendor": "P76",
    "version twice": "P36",
    "words only": "P67",
    "wraps": "P78a",
    "write echo": "P80",
    "wrong id": "P8",
}
"""What the little server does wrong, and the points that have to say so."""

WIDE = {"region leaks": "P46", "two sends": "P7a", "keeps maps": "P117a"}
"""Faults that show in many points, or slowly: the point that names them is enough."""


def failing(folder: Path, fault: str, only: list[str]) -> list[str]:
    with Little(str(folder / "little.sock"), [fault] if fault else []) as little:
        report = judge_server(little.path, only=only, writable=WRITABLE, timeout=1.0, patience=0.5)
    return [verdict.point.id for verdict in report.failures]


def test_a_server_that_is_right_passes_every_point(folder: Path) -> None:
    with Little(str(folder / "little.sock")) as little:
        report = judge_server(little.path, writable=WRITABLE)
    assert [str(verdict.saw) for verdict in report.failures] == []
    judged = [verdict for verdict in report if verdict.outcome is Outcome.PASS]
    assert len(judged) > 150


@pytest.mark.parametrize(("fault", "points"), FAULTS.items(), ids=FAULTS)
def test_a_server_that_is_wrong_is_found_out(folder: Path, fault: str, points: str) -> None:
    assert failing(folder, fault, points.split()) == points.split()


@pytest.mark.parametrize(("fault", "point"), WIDE.items(), ids=WIDE)
def test_a_server_that_is_wrong_everywhere_is_found_out(folder: Path, fault: str, point: str) -> None:
    assert failing(folder, fault, [point]) == [point]


@pytest.mark.soak
@pytest.mark.parametrize(("fault", "points"), FAULTS.items(), ids=FAULTS)
def test_no_other_point_fails(folder: Path, fault: str, points: str) -> None:
    assert failing(folder, fault, []) == points.split()
