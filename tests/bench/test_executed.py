"""Machine code counted by hand: loops, trips, products, bytes."""

from __future__ import annotations

import pytest

from fsdino.bench.executed import Instructions, Loop, store_sectors

# An outer loop of six instructions with one of two inside, and a wait.
LISTING = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;        /* 0x00000a00 */
        /*0010*/                   LDGSTS.E.BYPASS.128 [R5], desc[UR4][R2.64], P0 ;
        /*0020*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR5], R2 ;
        /*0030*/              @!P0 BRA 0x20 ;
        /*0040*/                   LDGSTS.E.64 [R5], desc[UR4][R2.64] ;
        /*0050*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0060*/                   IADD3 R1, R1, 0x1, RZ ;
        /*0070*/               @P1 BRA 0x60 ;
        /*0080*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24 ;
        /*0090*/               @P2 BRA 0x40 ;
        /*00a0*/                   STG.E.U16 desc[UR4][R2.64], R1 ;
        /*00b0*/                   EXIT ;
        /*00c0*/                   BRA 0xc0 ;
        /*00d0*/                   NOP ;
"""
CODE = Instructions.read(LISTING)


def test_loops_are_found() -> None:
    """The outer one first; a wait is none, and what lies behind the exit is not read."""
    assert len(CODE.words) == 12
    assert CODE.loops == [Loop(4, 9), Loop(6, 7)]


def test_counts_by_hand() -> None:
    """10 turns of the outer loop, 3 of the inner one in each."""
    done = CODE.executed([10, 3])
    assert done.instructions == 6 + 10 * 4 + 30 * 2
    assert done.flop == 10 * (2 * 16 * 8 * 16 + 2 * 64 * 128 * 16 / 4)
    # The copy before the loop stands in for one of its own, which copies nothing.
    assert done.copied == 10 * 32 * 8
    assert done.stored == 32 * 2


def test_copies_ahead_of_an_inner_loop() -> None:
    """They stand in for its last ones, each time that it is entered."""
    copy = "LDGSTS.E.64 [R5], desc[UR4][R2.64]"
    nested = Instructions.read(LISTING.replace("IADD3 R1, R1, 0x1, RZ", copy))
    assert nested.executed([10, 3]).copied == 30 * 32 * 8


def test_loops_must_be_known() -> None:
    """Code with another loop than the source is not counted."""
    with pytest.raises(ValueError, match="2 loops in the machine code, 1 expected"):
        CODE.executed([10])


def test_what_few_programs_reach() -> None:
    """Behind an atomic instruction only the share that goes on."""
    code = Instructions.read(LISTING.replace("IADD3 R1, R1, 0x1, RZ", "ATOMG.E.ADD.STRONG.GPU R1"))
    before, outer, inner = 4, 10 * (2 + 2 * 0.25), 30 * (1 + 0.25)
    assert code.executed([10, 3], [0.25]).instructions == before + outer + inner + 2 * 0.25
    with pytest.raises(ValueError, match="1 atomic instructions, 0 expected"):
        code.executed([10, 3])


def test_what_runs_beside_products() -> None:
    """The innermost loop with products; unrolled, what lies between them."""
    looped = ["LDGSTS.E.64", "HMMA.16816.F32.BF16", "IADD3", "BRA", "HGMMA.64x128x16.F32.BF16"]
    assert [word.split()[0] for word in CODE.beside_products()] == [*looped, "BRA"]
    unrolled = Instructions.read(LISTING.replace("@P2 BRA 0x40", "@P2 MOV R3, R4"))
    assert [word.split()[0] for word in unrolled.beside_products()] == looped[1:]
    assert not [
        *Instructions.read(
            LISTING.replace("GMMA", "FMA2.MMA").replace("HMMA", "MMAX")
        ).beside_products()
    ]


def test_what_is_slow_beside_products() -> None:
    """Divisions of 32 and of 64 bits, and loads of 2 bytes, but not outside of the loop."""
    slow = (
        "I2F.U32.RP R3, R2", "I2F.RP R3, R2", "CALL.REL.NOINC 0x90",
        "LDG.E.U16 R3, [R2.64]", "LDG.E.U16.CONSTANT R3, [R2.64]",
        "I2FP.F32.S32 R3, R2", "LDG.E.128 R4, [R2.64]",
    )  # fmt: skip
    counted = [Instructions.read(LISTING.replace("IADD3 R1, R1, 0x1, RZ", word)) for word in slow]
    assert [code.divisions() for code in counted] == [1, 1, 1, 0, 0, 0, 0]
    assert [code.narrow_loads() for code in counted] == [0, 0, 0, 1, 1, 0, 0]
    outside = Instructions.read(LISTING.replace("MOV R1, c[0x0][0x28]", slow[0]))
    assert outside.divisions() == 0


def test_sectors_that_a_store_touches() -> None:
    """By hand: dense rows; 4 of 24 bytes, from 0, 24, 16 or 8 in a sector on; single values."""
    assert CODE.widest_store() == 2
    assert store_sectors(16, 128, 128) == store_sectors(16, 32, 64) == 1
    assert store_sectors(4, 4, 24) == (24 + 25 + 24 + 24) / 4 * 32 / 128
    assert store_sectors(2, 2, 1000) == 16
    assert store_sectors(16, 4, 24) == store_sectors(4, 4, 24)
