"""The LLVM bodies of the checks in `outboard.native.crc`: by multiplication without carries, or by tables.

All is done with polynomials of degree 64; one of a lower degree is multiplied by a power of x first. A
message is folded: its first 16 bytes are replaced by what has the same remainder, further on, until few are
left, many at once and side by side. Those go through the register word by word: the register times x to the
64th, modulo the polynomial, either by Barrett's reduction or by a table for each byte of the word.

In a reflected check the lowest bit is the highest power. A product of two such numbers is one power of x
short, which the constants make up for. (Gopal and others, "Fast CRC Computation for Generic Polynomials Using
PCLMULQDQ Instruction", Intel 2009.)
"""

import platform
from functools import cache
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from outboard.native.crc import NVME, T10_DIF, Polynomial, reflect

Builder = Any
Value = Any

I8, I32, I64 = (ir.IntType(bits) for bits in (8, 32, 64))
WORD, CHUNK = 8, 16
SIDE_BY_SIDE = 4
"""Vectors that are folded at once: as many multiplications are under way in the processor."""


@cache
def vector_size() -> int:
    """Bytes of the vectors that this processor multiplies; 0 if it cannot."""
    from llvmlite.binding import get_host_cpu_features

    features = get_host_cpu_features()
    if platform.machine() not in ("x86_64", "AMD64") or not features.get("pclmul"):
        return 0
    return 64 if features.get("vpclmulqdq") and features.get("avx512f") else 16


def _crc16(builder: Builder, crc: Value, address: Value, size: Value) -> Value:
    aligned = _constant(64 - T10_DIF.width)
    register = _Check(builder, T10_DIF).run(builder.shl(crc, aligned), address, size)
    return builder.lshr(register, aligned)


def _crc64(builder: Builder, crc: Value, address: Value, size: Value) -> Value:
    return builder.not_(_Check(builder, NVME).run(builder.not_(crc), address, size))


class _Check:
    """Emits the code of one check, at the end of ``builder``."""

    def __init__(self, builder: Builder, polynomial: Polynomial) -> None:
        self.builder = builder
        self.reflected = polynomial.reflected
        self.divisor = polynomial.value << 64 - polynomial.width | 1 << 64

    def run(self, register: Value, address: Value, size: Value) -> Value:
        """The register after ``size`` bytes: those that can be are folded, the rest goes word by word."""
        builder = self.builder
        state = cgutils.alloca_once_value(builder, register)
        done = cgutils.alloca_once_value(builder, _constant(0))
        if vector_size():
            step = vector_size() * SIDE_BY_SIDE
            whole = builder.and_(size, _constant(-step))
            with builder.if_then(builder.icmp_unsigned(">=", size, _constant(step))):
                first, second = self.fold(builder.load(state), address, whole)
                builder.store(self.times_word(builder.xor(self.times_word(first), second)), state)
                builder.store(whole, done)
        with cgutils.for_range_slice(builder, builder.load(done), size, _constant(WORD)) as (offset, _):
            word = self.load(builder.add(address, offset), WORD)
            builder.store(self.times_word(builder.xor(builder.load(state), word)), state)
        return builder.load(state)

    def fold(self, register: Value, address: Value, whole: Value) -> tuple[Value, Value]:
        """Two words with the same remainder as ``whole`` bytes (steps) behind ``register``."""
        builder, width = self.builder, vector_size()
        step = width * SIDE_BY_SIDE
        places = [self.load(builder.add(address, _constant(width * n)), width) for n in range(SIDE_BY_SIDE)]
        at = _index(0 if self.reflected else 1)
        first = builder.xor(register, builder.extract_element(places[0], at))
        places[0] = builder.insert_element(places[0], first, at)
        vectors = [cgutils.alloca_once_value(builder, value) for value in places]
        with cgutils.for_range_slice(builder, _constant(step), whole, _constant(step)) as (offset, _):
            for number, vector in enumerate(vectors):
                at = builder.add(address, builder.add(offset, _constant(width * number)))
                folded = self.moved(builder.load(vector), 8 * step)
                builder.store(builder.xor(folded, self.load(at, width)), vector)
        loaded = [builder.load(vector) for vector in vectors]
        vector = self.together(loaded, width)
        lanes = [
            builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(I32, 2), [2 * n, 2 * n + 1]))
            for n in range(width // CHUNK)
        ]
        chunk = self.together(lanes, CHUNK)
        low, high = (builder.extract_element(chunk, _index(n)) for n in range(2))
        return (low, high) if self.reflected else (high, low)

    def together(self, vectors: list[Value], size: int) -> Value:
        """What vectors of ``size`` bytes, one behind the other, come down to where the last one is."""
        total = vectors[-1]
        for number, vector in enumerate(reversed(vectors[:-1])):
            total = self.builder.xor(total, self.moved(vector, 8 * size * (number + 1)))
        return total

    def moved(self, vector: Value, bits: int) -> Value:
        """What has the same remainder ``bits`` further on, for each chunk of a vector."""
        pair = [self.power(bits + 64), self.power(bits)]
        if not self.reflected:
            pair.reverse()
        count = vector.type.count
        factors = ir.Constant(vector.type, [*pair] * (count // 2))
        products = [self.product(vector, factors, selected) for selected in (0x00, 0x11)]
        return self.builder.xor(*products)

    def power(self, exponent: int) -> int:
        """A power of x modulo the polynomial, as a factor."""
        value = 1
        for _ in range(exponent - self.reflected):
            value = self._remainder(value << 1)
        return self.in_order(value)

    def in_order(self, value: int) -> int:
        """A number of 64 bits as it lies in a register."""
        return reflect(value, 64) if self.reflected else value

    def _remainder(self, value: int) -> int:
        return value ^ self.divisor if value >> 64 else value

    def load(self, address: Value, size: int) -> Value:
        """A word or a vector of the message, the highest powers of a chunk where they belong."""
        builder = self.builder
        if size == WORD:
            word = builder.load(builder.inttoptr(address, I64.as_pointer()), align=1)
            return word if self.reflected else builder.bswap(word)
        kind = ir.VectorType(I64, size // WORD)
        if self.reflected:
            return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1)
        octets = ir.VectorType(I8, size)
        loaded = builder.load(builder.inttoptr(address, octets.as_pointer()), align=1)
        order = [start + CHUNK - 1 - n for start in range(0, size, CHUNK) for n in range(CHUNK)]
        turned = builder.shuffle_vector(loaded, loaded, ir.Constant(ir.VectorType(I32, size), order))
        return builder.bitcast(turned, kind)

    def times_word(self, word: Value) -> Value:
        """A word times x to the 64th, modulo the polynomial."""
        return self._by_barrett(word) if vector_size() else self._by_tables(word)

    def _by_barrett(self, word: Value) -> Value:
        builder = self.builder
        quotient, left = 0, 1 << 128
        for bit in range(64, -1, -1):
            if left >> (bit + 64) & 1:
                quotient |= 1 << bit
                left ^= self.divisor << bit
        estimate, _ = self._words(word, self.in_order(quotient & (1 << 64) - 1))
        _, low = self._words(builder.xor(word, estimate), self.in_order(self.divisor & (1 << 64) - 1))
        return low

    def _words(self, word: Value, factor: int) -> tuple[Value, Value]:
        """The high and the low word of a product."""
        builder = self.builder
        pair = ir.VectorType(I64, 2)
        left = builder.insert_element(ir.Constant(pair, [0, 0]), word, _index(0))
        product = self.product(left, ir.Constant(pair, [factor, 0]), 0x00)
        first, second = (builder.extract_element(product, _index(n)) for n in range(2))
        if not self.reflected:
            return second, first
        one = _constant(1)
        carried = builder.lshr(first, _constant(63))
        return builder.shl(first, one), builder.or_(builder.shl(second, one), carried)

    def product(self, left: Value, right: Value, selected: int) -> Value:
        """Products without carries of one word of each chunk: the lower ones (00h) or the higher (11h)."""
        kind = left.type
        name = "llvm.x86.pclmulqdq" + ("" if kind.count == 2 else f".{64 * kind.count}")
        function = cgutils.get_or_insert_function(
            self.builder.module, ir.FunctionType(kind, [kind, kind, I8]), name
        )
        return self.builder.call(function, [left, right, ir.Constant(I8, selected)])

    def _by_tables(self, word: Value) -> Value:
        builder = self.builder
        total = _constant(0)
        for number in range(WORD):
            shift = 8 * number if self.reflected else 56 - 8 * number
            octet = builder.and_(builder.lshr(word, _constant(shift)), _constant(0xFF))
            entry = builder.gep(self._table(WORD - 1 - number), [_constant(0), octet])
            total = builder.xor(total, builder.load(entry))
        return total

    def _table(self, behind: int) -> Value:
        """The constant array of what a byte comes to with ``behind`` more bytes of the word behind it."""
        name = f"outboard.crc.{self.divisor:x}.{behind}"
        if name not in self.builder.module.globals:
            values = []
            for octet in range(256):
                value = reflect(octet, 8) if self.reflected else octet
                for _ in range(64 + 8 * behind):
                    value = self._remainder(value << 1)
                values.append(self.in_order(value))
            kind = ir.ArrayType(I64, 256)
            table = ir.GlobalVariable(self.builder.module, kind, name)
            table.initializer, table.global_constant = ir.Constant(kind, values), True
            table.linkage = "internal"
        return self.builder.module.globals[name]


def _constant(value: int) -> Value:
    return ir.Constant(I64, value)


def _index(value: int) -> Value:
    return ir.Constant(I32, value)
