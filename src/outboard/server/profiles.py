"""What clients do differently from each other, and how a server knows which one it has.

The specification leaves room, and every client uses it in its own way. A `Profile` holds what a server has to
do for one of them; everything that suits all clients alike is done without asking who is there. A client is
recognised by its VERSION, whose numbers and JSON text differ enough.
"""

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from outboard.errors import SetupError
from outboard.protocol import DmaLayout
from outboard.protocol.messages import IoFdsLayout, Version

OnError = Literal["error", "ones", "full"]
"""What a failed request is answered with. error: an error reply. ones: an error reply, but all ones where the
device could not read. full: a reply of full size wherever one is due, all ones for what was to be read."""

ProfileName = Literal["auto", "spec", "qemu", "qemu-10.1", "cloud-hypervisor", "spdk", "libvfio-user"]


@dataclass(frozen=True, slots=True)
class Profile:
    """What a server does for one kind of client; the defaults are the specification's.

    ``client`` says who that is, ``told_by`` how it is recognised.
    """

    name: str
    client: str
    told_by: str
    write_multiple: bool = True
    """Whether REGION_WRITE_MULTI is agreed to; it is accepted always."""
    message_dma: bool = True
    """Whether the client can be sent DMA_READ and DMA_WRITE."""
    dma_layout: DmaLayout | None = None
    """How these lie on the wire; None: found out, by a write of no bytes, before the first of them."""
    fd_per_area: bool = False
    """Whether a region's reply has one descriptor for each mappable area, or one for all."""
    most_fds: int | None = None
    """Descriptors one of our messages may carry; None: as many as the client announced."""
    io_fds: IoFdsLayout = IoFdsLayout.SPEC
    """How doorbells that ring by descriptor are described; libvfio-user's layout has room for shadows."""
    needs_areas: bool = False
    """Whether the client rings doorbells in mapped memory only: it is a driver, with no messages for that."""
    on_error: OnError = "error"
    """What a failed request is answered with."""
    overlap_errno: int = errno.EEXIST
    """The errno that refuses a DMA_MAP over another."""
    full_migration_data: bool = False
    """Whether the reply to MIG_DATA_READ is as long as what was asked for, whatever there is."""
    reset_on_disconnect: bool = False
    """Whether the device is reset when the client goes: it leaves the device running."""


SPEC = Profile("spec", "one that keeps to the specification", "no other fits")
QEMU = Profile(
    "qemu",
    "QEMU's vfio-user-pci",
    "version 0.0, with write_multiple and migration",
    write_multiple=False,
)
QEMU_10_1 = Profile(
    "qemu-10.1",
    "QEMU 10.1, whose DMA messages have a layout of their own",
    "as qemu; then it answers a DMA_WRITE of no bytes with a bare header",
    write_multiple=False,
    dma_layout=DmaLayout.QEMU10,
)
CLOUD_HYPERVISOR = Profile(
    "cloud-hypervisor",
    "cloud-hypervisor, by rust-vmm's crate",
    "version 0.1, max_msg_fds 1, migration, no write_multiple",
    write_multiple=False,
    message_dma=False,
    on_error="full",
)
SPDK = Profile(
    "spdk",
    "SPDK's NVMe driver",
    "version 0.1 without JSON",
    write_multiple=False,
    message_dma=False,
    fd_per_area=True,
    most_fds=7,
    needs_areas=True,
    reset_on_disconnect=True,
)
LIBVFIO_USER = Profile(
    "libvfio-user",
    "libvfio-user's sample client and its tests",
    "version 0.2; or 0.1 with max_msg_fds 8 and neither write_multiple nor migration",
    write_multiple=False,
    dma_layout=DmaLayout.SPEC,
    io_fds=IoFdsLayout.LIBVFIO_USER,
    overlap_errno=errno.EINVAL,
    full_migration_data=True,
)

PROFILES = {
    profile.name: profile for profile in (SPEC, QEMU, QEMU_10_1, CLOUD_HYPERVISOR, SPDK, LIBVFIO_USER)
}


def chosen(profile: "ProfileName | Profile") -> Profile | None:
    """The profile meant, by name or itself; None for ``auto``: it is detected. Raises SetupError for no name.

    >>> chosen("spdk") is SPDK, chosen("auto")
    (True, None)
    """
    if isinstance(profile, Profile):
        return profile
    if profile != "auto" and profile not in PROFILES:
        raise SetupError(f"there is no profile {profile!r}: it is one of {', '.join(get_args(ProfileName))}")
    return PROFILES.get(profile)


def detect(version: Version) -> Profile:
    """The profile of the client that said `version`.

    >>> detect(Version(0, 1, None)).name
    'spdk'
    """
    return next((profile for profile, fits in _SIGNS if fits(version)), SPEC)


def _is_qemu(version: Version) -> bool:
    said = version.capabilities
    return version.minor == 0 and said is not None and said.write_multiple and said.migration is not None


def _is_cloud_hypervisor(version: Version) -> bool:
    said = version.capabilities
    return (
        version.minor == 1
        and said is not None
        and said.max_msg_fds == 1
        and said.migration is not None
        and not said.write_multiple
    )


def _is_spdk(version: Version) -> bool:
    return version.minor == 1 and version.capabilities is None


def _is_libvfio_user(version: Version) -> bool:
    said = version.capabilities
    if version.minor != 1 or said is None:
        return version.minor == 2
    return said.max_msg_fds == 8 and not said.write_multiple and said.migration is None


_SIGNS: tuple[tuple[Profile, Callable[[Version], bool]], ...] = (
    (QEMU, _is_qemu),
    (CLOUD_HYPERVISOR, _is_cloud_hypervisor),
    (SPDK, _is_spdk),
    (LIBVFIO_USER, _is_libvfio_user),
)
