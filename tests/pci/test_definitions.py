"""Nonsense is refused when the class is created, with a sentence that names the values."""

from collections.abc import Callable

import pytest

from outboard import (
    Bar,
    Device,
    Intx,
    Msi,
    MsiX,
    PciExpress,
    RawCapability,
    Rom,
    SerialNumber,
    VendorCapability,
    VendorExtended,
)
from outboard.errors import DefinitionError
from outboard.pci.fields import Field


def declare(**fields: object) -> type[Device]:
    return type("Wrong", (Device,), fields)


BAR = Bar(0, size=0x1000)
IO = Bar(0, size=0x100, io=True)

ALONE: dict[str, tuple[Callable[[], object], str]] = {
    "BAR6": (lambda: Bar(6, size=16), "BAR6: a function has BAR0 to BAR5"),
    "size no power of two": (lambda: Bar(0, size=0x1800), "0x1800 is no power of two"),
    "8 bytes of memory": (lambda: Bar(0, size=8), "0x8 is no power of two >= 16"),
    "2 bytes of I/O": (lambda: Bar(0, size=2, io=True), "0x2 is no power of two >= 4"),
    "4 GiB in 32 bits": (lambda: Bar(0, size=1 << 32), "do not fit in 32 address bits"),
    "48 bits": (lambda: Bar(0, size=16, bits=48), "bits is 48"),
    "64 bits at the end": (lambda: Bar(5, size=16, bits=64), "start at BAR4"),
    "I/O of 64 bits": (lambda: Bar(0, size=16, bits=64, io=True), "an I/O BAR is 32 bits"),
    "prefetchable I/O": (lambda: Bar(0, size=16, prefetchable=True, io=True), "not prefetchable"),
    "mapped I/O": (lambda: Bar(0, size=0x1000, mmap=True, io=True), "I/O BAR cannot be mapped"),
    "mapped crumbs": (lambda: Bar(0, size=0x800, mmap=True), "less than a page"),
    "half a page": (lambda: Bar(0, size=0x2000, mmap=[(0x800, 0x1000)]), "is not made of 4 KiB pages"),
    "no page": (lambda: Bar(0, size=0x2000, mmap=[(0x1000, 0)]), "is not made of 4 KiB pages"),
    "page outside": (lambda: Bar(0, size=0x2000, mmap=[(0x2000, 0x1000)]), "ends after the BAR"),
    "overlapping pages": (lambda: Bar(0, size=0x4000, mmap=[(0, 0x2000), (0x1000, 0x1000)]), "overlaps"),
    "3-byte register": (lambda: BAR.reg(0, size=3), "size is 3"),
    "register outside": (lambda: BAR.reg(0xFFE), "ends at 0x1002, the BAR at 0x1000"),
    "negative offset": (lambda: BAR.reg(-4), "BAR0 ends at 0x0"),
    "long array": (lambda: BAR.array(0x800, count=300, stride=8), "ends at 0x115c"),
    "empty array": (lambda: BAR.array(0, count=0), "count is 0"),
    "tight stride": (lambda: BAR.array(0, count=2, stride=2), "stride 2 is smaller"),
    "wide reset value": (lambda: BAR.reg(0, size=2, reset=0x1_0000), "0x10000 does not fit in 2 bytes"),
    "wide mask": (lambda: BAR.reg(0, size=1, mask=0x100), "mask 0x100 does not fit in 1 bytes"),
    "access kind": (lambda: BAR.reg(0, access="rx"), "access 'rx' is none of rw, ro"),  # type: ignore[arg-type]
    "bit 32": (lambda: BAR.reg(0).bit(32), "bits 32..32"),
    "bits reversed": (lambda: BAR.reg(0).bits(3, 7), "bits 3..7"),
    "write handler of ro": (
        lambda: BAR.reg(0, access="ro").on_write(handler),
        "no write of the guest reaches",
    ),
    "read handler of wo": (lambda: BAR.reg(0, access="wo").on_read(reader), "it reads as 0"),
    "memory outside": (lambda: BAR.ram(0xF00, size=0x200), "memory of 0x200 bytes at 0xf00"),
    "3-byte doorbell": (lambda: BAR.doorbell(0, size=3), "size is 3"),
    "no doorbell": (lambda: BAR.doorbell(0, count=0), "count is 0"),
    "tight doorbells": (lambda: BAR.doorbell(0, count=2, stride=2), "stride 2 is smaller"),
    "doorbell outside": (lambda: BAR.doorbell(0xFF0, count=5), "ends at 0x1004, the BAR at 0x1000"),
    "negative doorbell": (lambda: BAR.doorbell(-4), "BAR0 ends at 0x0"),
    "matches at two places": (lambda: BAR.doorbell(0, count=2, matches=[1]), "one place, count is 2"),
    "a shadow of a match": (lambda: BAR.doorbell(0, matches=[1], shadow=True), "would never be read"),
    "matches that share": (lambda: BAR.doorbell(0, matches=[1, 2], shared=True), "no value could be told"),
    "one match twice": (lambda: BAR.doorbell(0, matches=[1, 1]), "comes twice"),
    "a wide match": (lambda: BAR.doorbell(0, size=2, matches=[1 << 16]), "0x10000 does not fit in 2"),
    "sharing alone": (lambda: BAR.doorbell(0, shared=True), "nothing shares its eventfd"),
    "empty ROM": (lambda: Rom(b""), "1 byte to 16 MiB"),
    "pin": (lambda: Intx("E"), "'E' is none of A, B, C, D"),
    "three MSI vectors": (lambda: Msi(vectors=3), "a power of two up to 32"),
    "4096 MSI-X vectors": (lambda: MsiX(vectors=4096), "1 to 2048"),
    "table without PBA": (lambda: MsiX(table=(0, 0)), "give both"),
    "crooked table": (lambda: MsiX(table=(0, 4), pba=(0, 0x100)), "0x4 is not a multiple of 8"),
    "table nowhere": (lambda: MsiX(table=(7, 0), pba=(0, 0)), "7 is no BAR"),
    "wide serial number": (lambda: SerialNumber(1 << 64), "does not fit in 64 bits"),
    "long vendor data": (lambda: VendorCapability(bytes(253)), "the length byte allows 252"),
    "wide VSEC id": (lambda: VendorExtended(1 << 16, 0, b""), "does not fit in 16 bits"),
    "long mask": (lambda: RawCapability(9, b"ab", b"abc"), "a mask of 3 bytes for 2"),
    "wide capability id": (lambda: RawCapability(0x100, b""), "0x100 is not in 0..0xff"),
}


def handler(self: object, value: int) -> None:
    """Of no class."""


def bell_handler(self: object, index: int, value: int) -> None:
    """Of no class."""


def reader(self: object) -> int:
    return 0


@pytest.mark.parametrize("case", ALONE.values(), ids=ALONE.keys())
def test_a_declaration_that_cannot_be_is_refused(case: tuple[Callable[[], object], str]) -> None:
    make, sentence = case
    with pytest.raises(DefinitionError, match=sentence.replace("(", r"\(").replace("..", r"\.\.")):
        make()


def fields_of_overlap() -> dict[str, Field[object]]:
    bar = Bar(0, size=0x100)
    return {"bar": bar, "first": bar.reg(0x10, size=8), "second": bar.reg(0x14)}


def mapped(whole: bool = True) -> Bar:
    return Bar(0, size=0x2000, mmap=True if whole else [(0x1000, 0x1000)])


TOGETHER: dict[str, tuple[Callable[[], dict[str, object]], str]] = {
    "one index twice": (
        lambda: {"low": Bar(1, size=16), "high": Bar(1, size=16)},
        "high and low both take BAR1",
    ),
    "the upper half of a 64-bit BAR": (
        lambda: {"wide": Bar(0, size=16, bits=64), "next": Bar(1, size=16)},
        "next and wide both take BAR1",
    ),
    "registers overlap": (lambda: {**fields_of_overlap()}, "first and second overlap at 0x14"),
    "one register, two names": (
        lambda: {"bar": (bar := Bar(0, size=16)), "one": (reg := bar.reg(0)), "two": reg},
        "overlap",
    ),
    "memory over a register": (
        lambda: {"bar": (bar := Bar(0, size=64)), "ram": bar.ram(0, size=32), "reg": bar.reg(28)},
        "ram and reg overlap at 0x1c",
    ),
    "a BAR that is no field": (lambda: {"reg": Bar(3, size=16).reg(0)}, "BAR3, which is no field"),
    "bits of a nameless register": (
        lambda: {"bar": (bar := Bar(0, size=16)), "on": bar.reg(8).bit(0)},
        "the register at 0x8, which has no name",
    ),
    "MSI twice": (lambda: {"one": Msi(), "two": Msi()}, "one and two are both Msi"),
    "INTx twice": (lambda: {"one": Intx(), "two": Intx("B")}, "both Intx"),
    "MSI-X in a missing BAR": (lambda: {"msix": MsiX(table=(2, 0), pba=(2, 64))}, "there is no BAR2"),
    "MSI-X in an I/O BAR": (
        lambda: {"io": Bar(0, size=0x100, io=True), "msix": MsiX(table=(0, 0), pba=(0, 64))},
        "an I/O BAR",
    ),
    "MSI-X past the end": (
        lambda: {"bar": Bar(0, size=0x100), "msix": MsiX(vectors=17, table=(0, 0), pba=(0, 0))},
        "the table at 0x0 of BAR0 ends at 0x110, the BAR at 0x100",
    ),
    "MSI-X table over its PBA": (
        lambda: {"bar": Bar(0, size=0x100), "msix": MsiX(vectors=4, table=(0, 0), pba=(0, 0x20))},
        "the MSI-X table and the MSI-X PBA overlap at 0x20",
    ),
    "MSI-X over a register": (
        lambda: {
            "bar": (bar := Bar(0, size=0x100)),
            "reg": bar.reg(0x40),
            "msix": MsiX(vectors=8, table=(0, 0), pba=(0, 0x80)),
        },
        "the MSI-X table and reg overlap at 0x40",
    ),
    "no BAR free for MSI-X": (
        lambda: {**{f"bar{i}": Bar(i, size=16, bits=64) for i in (0, 2, 4)}, "msix": MsiX()},
        "no BAR is free for its table; put table= and pba=",
    ),
    "an extended capability without express": (
        lambda: {"serial": SerialNumber(1)},
        "serial is an extended capability: declare PciExpress()",
    ),
    "too many capabilities": (
        lambda: {f"c{i}": VendorCapability(bytes(60)) for i in range(4)},
        "c3 does not fit: it would end at",
    ),
    "too many extended capabilities": (
        lambda: {"link": PciExpress(), "big": RawCapability(1, bytes(3900), extended=True)},
        "big does not fit",
    ),
    "a read handler where the guest maps": (
        lambda: {
            "bar": (bar := mapped(False)),
            "reg": (reg := bar.reg(0x1000)),
            "reader": reg.on_read(reader),
        },
        "reg lies where the guest may map BAR0: reader would not run",
    ),
    "a write handler where the guest maps all": (
        lambda: {"bar": (bar := mapped()), "reg": (reg := bar.reg(0)), "handler": reg.on_write(handler)},
        "handler would not run; list the areas",
    ),
    "a clearable register where the guest maps": (
        lambda: {"bar": (bar := mapped()), "reg": bar.reg(0, access="w1c")},
        "it cannot be 'w1c'",
    ),
    "a doorbell over a register": (
        lambda: {"bar": (bar := Bar(0, size=64)), "reg": bar.reg(8), "bell": bar.doorbell(0, count=3)},
        "bell and reg overlap at 0x8",
    ),
    "a doorbell over the MSI-X table": (
        lambda: {
            "bar": (bar := Bar(0, size=0x100)),
            "msix": MsiX(vectors=1, table=(0, 0x20), pba=(0, 0x80)),
            "bell": bar.doorbell(0x2C),
        },
        "the MSI-X table and bell overlap at 0x2c",
    ),
    "a doorbell where the guest maps": (
        lambda: {"bar": (bar := mapped(False)), "bell": bar.doorbell(0xFFC, count=2)},
        "bell at 0xffc lies where the guest may map BAR0: a write there signals nothing",
    ),
    "a doorbell handler that is no method": (
        lambda: {
            "bar": (bar := Bar(0, size=16)),
            "bell": (bell := bar.doorbell(0)),
            "_": bell.on_ring(bell_handler),
        },
        "Wrong.bell is handled by bell_handler, which is no method",
    ),
    "a handler that is no method": (
        lambda: {"bar": (bar := Bar(0, size=16)), "reg": (reg := bar.reg(0)), "_": reg.on_write(handler)},
        "Wrong.reg is handled by handler, which is no method",
    ),
    "a name the device needs": (lambda: {"reset": Bar(0, size=16)}, "Wrong.reset hides Device.reset"),
    "a name every device has": (lambda: {"dma": Bar(0, size=16)}, "Wrong.dma hides Device.dma"),
    "a wide vendor id": (lambda: {"vendor_id": 0x12345}, "Wrong.vendor_id is 74565: it has 16 bits"),
    "a wide class code": (lambda: {"class_code": 1 << 24}, "Wrong.class_code is 16777216: it has 24 bits"),
}


@pytest.mark.point("P45")
@pytest.mark.parametrize("case", TOGETHER.values(), ids=TOGETHER.keys())
def test_declarations_that_contradict_each_other_are_refused(
    case: tuple[Callable[[], dict[str, object]], str],
) -> None:
    fields, sentence = case
    with pytest.raises(DefinitionError) as refusal:
        declare(**fields())
    assert sentence in refusal.value.sentence


@pytest.mark.point("P45")
@pytest.mark.parametrize(("table", "pba"), [(0x1800, 0x3000), (0x3000, 0x1FF8), (0x0FF8, 0x3000)])
def test_msix_may_not_share_a_page_with_what_the_guest_maps(table: int, pba: int) -> None:
    with pytest.raises(DefinitionError, match="shares a page with the area at 0x1000"):
        declare(
            bar=Bar(0, size=0x4000, mmap=[(0x1000, 0x1000)]),
            msix=MsiX(vectors=2, table=(0, table), pba=(0, pba)),
        )


def test_two_handlers_of_one_name_are_refused() -> None:
    with pytest.raises(DefinitionError, match="two handlers of Twice are called written"):

        class Twice(Device):
            bar = Bar(0, size=16)
            first = bar.reg(0)
            second = bar.reg(4)

            @first.on_write
            def written(self, value: int) -> None:
                pass

            @second.on_write  # type: ignore[no-redef]
            def written(self, value: int) -> None:  # noqa: F811
                pass


def test_one_handler_may_serve_two_registers() -> None:
    class Shared(Device):
        bar = Bar(0, size=16)
        first = bar.reg(0)
        second = bar.reg(4)
        total = 0

        @first.on_write
        @second.on_write
        def written(self, value: int) -> None:
            self.total += value

    device = Shared()
    device.region_write(0, 0, b"\1\0\0\0\2\0\0\0")
    assert device.total == 3


def test_a_handler_may_not_be_added_to_another_class_s_register() -> None:
    class Base(Device):
        bar = Bar(0, size=16)
        register = bar.reg(0)

    with pytest.raises(DefinitionError, match="added must be defined in the class that declares it"):

        class Derived(Base):
            @Base.register.on_write
            def added(self, value: int) -> None:
                pass


def test_a_second_handler_of_one_register_is_refused() -> None:
    register = Bar(0, size=16).reg(0)
    register.on_write(handler)
    with pytest.raises(DefinitionError, match="is handler already: override that method"):
        register.on_write(handler)


def test_using_a_device_before_its_constructor_ran_says_what_to_do() -> None:
    class Hasty(Device):
        msi = Msi()

        def __init__(self) -> None:
            self.msi[0].trigger()

    with pytest.raises(AttributeError, match=r"call super\(\)"):
        Hasty()
