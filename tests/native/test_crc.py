"""The checks of protected blocks: by known vectors, against long division, in every way there is to run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outboard.native import jit
from outboard.native.crc import NVME, T10_DIF, Polynomial, crc16, crc64, reflect
from outboard.native.jit import entry
from outboard.native.words import Block
from tests.native.conftest import Call

BYTES = 8192 + 64


@entry
def check16(crc: int, address: int, size: int) -> int:
    return crc16(crc, address, size)


@entry
def check64(crc: int, address: int, size: int) -> int:
    return crc64(crc, address, size)


@pytest.fixture(scope="module")
def memory() -> Block:
    return Block(BYTES)


def divide(polynomial: Polynomial, data: bytes, ones: int) -> int:
    """The remainder by schoolbook division; ``ones`` is what the register begins with and ends by."""
    message = [(byte >> (bit if polynomial.reflected else 7 - bit)) & 1 for byte in data for bit in range(8)]
    register = ones
    for bit in message:
        top = register >> polynomial.width - 1 ^ bit
        register = (register << 1) & (1 << polynomial.width) - 1 ^ top * polynomial.value
    return (reflect(register, polynomial.width) if polynomial.reflected else register) ^ ones


@pytest.mark.point("N13")
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (bytes(32), 0x0000),
        (b"\xff" * 32, 0xA293),
        (bytes(range(32)), 0x0224),
        (b"123456789".rjust(16, b"\0"), 0xD0DB),
    ],
    ids=["zeros", "ones", "rising", "digits"],
)
def test_the_16_bit_check_gives_what_t10_prints(
    call: Call, memory: Block, data: bytes, expected: int
) -> None:
    memory.bytes[: len(data)] = data
    assert call(check16)(0, memory.address, len(data)) == expected


@pytest.mark.point("N13")
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (bytes(4096), 0x6482_D367_EB22_B64E),
        (b"\xff" * 4096, 0xC0DD_BA73_02EC_A3AC),
        (bytes(range(256)) * 16, 0x3E72_9F5F_6750_449C),
        (bytes(range(255, -1, -1)) * 16, 0x9A2D_F64B_8E9E_517E),
    ],
    ids=["zeros", "ones", "rising", "falling"],
)
def test_the_64_bit_check_gives_what_nvm_express_prints(
    call: Call, memory: Block, data: bytes, expected: int
) -> None:
    memory.bytes[: len(data)] = data
    assert call(check64)(0, memory.address, len(data)) & (1 << 64) - 1 == expected


@settings(max_examples=60, deadline=None)
@given(words=st.integers(0, 140), offset=st.integers(0, 63), cut=st.integers(0, 140), seed=st.binary())
def test_a_check_is_a_remainder_wherever_it_is_cut(
    call_both: list[Call], memory: Block, words: int, offset: int, cut: int, seed: bytes
) -> None:
    data = (seed * (words * 8 // len(seed) + 1))[: words * 8] if seed else bytes(words * 8)
    memory.bytes[offset : offset + len(data)] = data
    at, first = memory.address + offset, min(cut, words) * 8
    for call in call_both:
        for check, polynomial, ones in ((check16, T10_DIF, 0), (check64, NVME, (1 << 64) - 1)):
            begun = call(check)(0, at, first)
            found = call(check)(begun, at + first, len(data) - first)
            assert found & (1 << polynomial.width) - 1 == divide(polynomial, data, ones)


@pytest.mark.parametrize("width", [0, 16])
def test_processors_that_can_do_less_find_the_same(tmp_path: Path, width: int) -> None:
    if not jit.available():
        pytest.skip("there is no Numba here")
    script = f"""
import os
from outboard.native import crc_lowering
real = crc_lowering.vector_size
crc_lowering.vector_size = lambda: min({width}, real())
from tests.native.test_crc import check16, check64, Block
block = Block(8192)
block.bytes[:] = os.urandom(8192)
for size in (8, 16, 56, 64, 264, 512, 520, 4096, 4152):
    for check in (check16, check64):
        assert check.native(7, block.address + 3, size) == check.plain(7, block.address + 3, size), size
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "OUTBOARD_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
