"""How often the instructions of a kernel run: the loops of its machine code, times their trips."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,6})\*/\s+(?:@!?U?P[T0-9]+\s+)?([^;]*);", re.MULTILINE)
_BRANCH = re.compile(r"^BRA(?:\.\S+)?\s.*?0x([0-9a-f]+)|^BRA(?:\.\S+)?\s+0x([0-9a-f]+)")
_PRODUCT = re.compile(r"^\w*MMA\b")  # and not HFMA2.MMA, which is an ordinary multiply-add
_WARP_PRODUCT = re.compile(r"^HMMA\.(16816|1688)\.")
_GROUP_PRODUCT = re.compile(r"^HGMMA\.(\d+)x(\d+)x(\d+)\.")
_COPY = re.compile(r"^LDGSTS\.E(\S*)")
_STORE = re.compile(r"^STG\.E(\S*)")
_ATOMIC = "ATOMG"
# Of integers: 32 bits estimate the reciprocal of a rounded-up divisor, 64 bits call a routine.
_DIVISION = re.compile(r"^I2F\.(?:\w+\.)*RP\b|^CALL\b")
_NARROW_LOAD = re.compile(r"^LDG\.E\.(?:\w+\.)*[US]16\b")
_LANES = 32
_SECTOR = 32
_FLOP = {"16816": 2.0 * 16 * 8 * 16, "1688": 2.0 * 16 * 8 * 8}


@dataclass(frozen=True)
class Loop:
    """Instructions first..last, the last of which jumps back to the first."""

    first: int
    last: int

    def holds(self, index: int) -> bool:
        """Whether it runs the instruction, itself or by a loop inside of it."""
        return self.first <= index <= self.last


@dataclass(frozen=True)
class Executed:
    """What one warp does in one program.

    Attributes:
        instructions: that it issues.
        flop: of its share of the products on tensor cores; 0 where the code does not tell, which
            is sm_100.
        copied: bytes that its copies to shared memory ask for, masked ones as well. Those before a
            loop that copies are not counted, since as many of the loop's last ones copy nothing.
            Nor is what is loaded into registers, since many lanes may ask for the same.
        stored: bytes that it stores, masked ones as well.
    """

    instructions: float
    flop: float
    copied: float
    stored: float


@dataclass(frozen=True)
class Instructions:
    """A kernel's instructions in order, without those behind its last exit: slow paths of waiting
    and of rare numbers, and padding.

    Attributes:
        words: opcode and operands of each.
        targets: index that each jumps to, -1 if it does not.
    """

    words: Sequence[str]
    targets: Sequence[int]

    @classmethod
    def read(cls, text: str) -> Instructions:
        """From what `cuobjdump -sass` prints of one function."""
        found = [(int(address, 16), word.strip()) for address, word in _LINE.findall(text)]
        last = max(i for i, (_, word) in enumerate(found) if word.startswith("EXIT"))
        found = found[: last + 1]
        indices = {address: index for index, (address, _) in enumerate(found)}
        targets = []
        for _, word in found:
            branch = _BRANCH.match(word)
            address = int(branch[1] or branch[2], 16) if branch else -1
            targets.append(indices.get(address, -1))
        return cls([word for _, word in found], targets)

    @cached_property
    def loops(self) -> list[Loop]:
        """In the order in which they begin, an outer one before those inside of it.

        A wait for a barrier or for memory of the tensor cores does not count as a loop, since it
        usually asks once.
        """
        ends: dict[int, int] = {}
        for index, target in enumerate(self.targets):
            if 0 <= target < index:
                ends[target] = max(index, ends.get(target, 0))
        found = [Loop(first, last) for first, last in ends.items()]
        found = [loop for loop in found if not self._waits(loop)]
        return sorted(found, key=lambda loop: (loop.first, -loop.last))

    def _waits(self, loop: Loop) -> bool:
        body = self.words[loop.first : loop.last + 1]
        asks = ("SYNCS", "UTCATOMSWS")
        return len(body) <= 8 and any(word.startswith(asks) for word in body)

    def executed(self, trips: Sequence[float], arrivals: Sequence[float] = ()) -> Executed:
        """Counts of one warp.

        Args:
            trips: of each of the loops, those of an inner one each time that it is entered.
            arrivals: what share of the programs goes on behind each atomic instruction, by which
                programs find out who is last; all others end there.

        Raises:
            ValueError: there are more or fewer loops, or atomic instructions.
        """
        if len(trips) != len(self.loops):
            raise ValueError(f"{len(self.loops)} loops in the machine code, {len(trips)} expected")
        atomics = sum(word.startswith(_ATOMIC) for word in self.words)
        if atomics != len(arrivals):
            raise ValueError(f"{atomics} atomic instructions, {len(arrivals)} expected")
        shares = iter(arrivals)
        share = 1.0
        instructions = flop = copied = stored = 0.0
        for index, word in enumerate(self.words):
            times = share * math.prod(
                trip for loop, trip in zip(self.loops, trips, strict=True) if loop.holds(index)
            )
            instructions += times
            flop += times * _flop(word)
            if (copy := _COPY.match(word)) and not self._is_ahead(index):
                copied += times * _bytes(copy)
            stored += times * _bytes(_STORE.match(word))
            if word.startswith(_ATOMIC):
                share = next(shares)
        return Executed(instructions, flop, copied, stored)

    def _is_ahead(self, index: int) -> bool:
        """Whether a copy is made ahead of a loop that copies, beside it in the kernel or in a loop
        around both."""
        around = [loop for loop in self.loops if loop.holds(index)]
        return any(
            loop not in around and (not around or around[-1].holds(loop.first))
            for loop in self.loops
            if any(_COPY.match(word) for word in self._body(loop))
        )

    def beside_products(self) -> Iterator[str]:
        """What runs in an innermost loop that multiplies on tensor cores; where the loop is
        unrolled, from the first product to the last."""
        products = [i for i, word in enumerate(self.words) if _PRODUCT.match(word)]
        loops = [loop for loop in self.loops if any(map(loop.holds, products))]
        found = [
            loop for loop in loops if not any(o != loop and loop.holds(o.first) for o in loops)
        ]
        if products and not found:
            found = [Loop(products[0], products[-1])]
        for loop in found:
            yield from self._body(loop)

    def divisions(self) -> int:
        """Integer divisions beside products; several by one number may count once."""
        return sum(bool(_DIVISION.match(word)) for word in self.beside_products())

    def narrow_loads(self) -> int:
        """Loads of 2 bytes a lane beside products: they cost as much as loads of 16 bytes."""
        return sum(bool(_NARROW_LOAD.match(word)) for word in self.beside_products())

    def widest_store(self) -> int:
        """Bytes that a lane stores at a time; 0 without stores."""
        return round(max((_bytes(_STORE.match(word)) for word in self.words), default=0) / _LANES)

    def _body(self, loop: Loop) -> Sequence[str]:
        return self.words[loop.first : loop.last + 1]


def store_sectors(width: int, piece: int, stride: int) -> float:
    """Bytes of the sectors of memory that a warp's stores touch, over the bytes that they store.

    The mean over where in a sector a warp begins. Its lanes write one after the other in the order
    of memory.

    Args:
        width: bytes that a lane stores at a time.
        piece: bytes that lie side by side.
        stride: bytes from the beginning of a piece to that of the next.
    """
    width = min(width, piece)
    touched = 0
    for first in range(_SECTOR):  # pieces before the warp's
        stored = range(first * piece, first * piece + _LANES * width, width)
        places = (byte // piece * stride + byte % piece for byte in stored)
        touched += len({(p + end) // _SECTOR for p in places for end in (0, width - 1)})
    return touched / _SECTOR * _SECTOR / (_LANES * width)


def _flop(word: str) -> float:
    if of_warp := _WARP_PRODUCT.match(word):
        return _FLOP[of_warp[1]]
    if of_group := _GROUP_PRODUCT.match(word):
        m, n, k = map(int, of_group.groups())
        return 2.0 * m * n * k / 4  # four warps share it
    return 0.0


def _bytes(found: re.Match[str] | None) -> float:
    """Of a warp's load or store, by the width of its opcode."""
    if found is None:
        return 0.0
    kinds = set(found[1].split("."))
    widths = {"128": 16, "64": 8, "U16": 2, "S16": 2, "16": 2, "U8": 1, "S8": 1, "8": 1}
    return _LANES * next((width for kind, width in widths.items() if kind in kinds), 4)
