"""What is added to a user's QEMU arguments."""

import json

import pytest

from outboard.cli.qemu_command import complete, machine_type, memory_size
from outboard.errors import SetupError
from outboard.testing.guest import Attach

SHARED = ["-object", "memory-backend-file,id=ram,size=1G,mem-path=/dev/shm/q,share=on"]
DISK = Attach("/tmp/disk.sock", bootindex=1)


def devices(added: list[str]) -> list[dict[str, object]]:
    return [json.loads(word) for word in added if word.startswith("{")]


@pytest.mark.parametrize(
    ("user", "size"),
    [
        ([], 128 << 20),
        (["-m", "2G"], 2 << 30),
        (["-m", "512"], 512 << 20),
        (["-m", "1024M,slots=2,maxmem=4G"], 1 << 30),
        (["-m", "slots=2,size=1G"], 1 << 30),
        (["--m", "1G"], 1 << 30),
    ],
)
def test_the_shared_memory_has_the_size_the_user_asks_for(user: list[str], size: int) -> None:
    added = complete(user, [])
    assert memory_size(user) == size
    assert f"memory-backend-memfd,id=outboard-memory,size={size},share=on" in added
    assert "memory-backend=outboard-memory" in added


@pytest.mark.parametrize(
    "user",
    [
        [*SHARED, "-machine", "q35,memory-backend=ram"],
        [*SHARED, "-M", "memory-backend=ram"],
        [*SHARED, "-numa", "node,memdev=ram"],
        ["-object", "memory-backend-memfd,id=ram,size=1G", "-machine", "pc,memory-backend=ram"],
        [
            "-object",
            '{"qom-type":"memory-backend-memfd","id":"ram","share":true}',
            "-M",
            "memory-backend=ram",
        ],
    ],
)
def test_shared_memory_of_the_users_own_is_left_alone(user: list[str]) -> None:
    assert complete(user, []) == []


@pytest.mark.point("P108")
@pytest.mark.parametrize(
    "user",
    [
        ["-object", "memory-backend-ram,id=ram,size=1G", "-machine", "memory-backend=ram"],
        ["-object", "memory-backend-memfd,id=ram,size=1G,share=off", "-M", "memory-backend=ram"],
    ],
)
def test_private_memory_is_refused_before_it_can_deceive(user: list[str]) -> None:
    with pytest.raises(SetupError, match="share=on"):
        complete(user, [])


def test_a_memory_backend_that_is_not_there_is_refused() -> None:
    with pytest.raises(SetupError, match="'ram'"):
        complete(["-machine", "q35,memory-backend=ram"], [])


@pytest.mark.parametrize(
    "machine", [["-machine", "q35"], ["-M", "type=q35,accel=tcg"], ["-M", "pc-q35-10.1"]]
)
def test_an_express_machine_gets_a_root_port_for_each_device(machine: list[str]) -> None:
    added = complete(machine, [DISK, Attach("/tmp/edu.sock")])
    ports = [word.split(",")[1:] for word in added if word.startswith("pcie-root-port")]
    assert [port[0].removeprefix("id=") for port in ports] == [device["bus"] for device in devices(added)]
    assert len({port[1] for port in ports}) == 2


@pytest.mark.parametrize("machine", [[], ["-M", "pc"], ["-machine", "accel=kvm"]])
def test_a_conventional_machine_gets_none(machine: list[str]) -> None:
    added = complete(machine, [DISK])
    assert not any("root-port" in word for word in added)
    assert devices(added)[0]["bus"] == "pci.0"


def test_the_last_machine_counts() -> None:
    assert machine_type(["-M", "pc", "-machine", "accel=tcg", "-machine", "q35"]) == "q35"


def test_a_disk_is_offered_to_the_firmware() -> None:
    assert devices(complete([], [DISK]))[0]["bootindex"] == 1


def test_a_comma_in_a_value_is_not_the_end_of_it() -> None:
    user = [
        "-object",
        "memory-backend-file,id=ram,size=1G,mem-path=/tmp/a,,b,share=on",
        "-M",
        "memory-backend=ram",
    ]
    assert complete(user, []) == []
