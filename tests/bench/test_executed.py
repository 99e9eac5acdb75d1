"""Machine code counted by hand: loops, trips, products, bytes."""

from __future__ import annotations

import pytest

from fsdino.bench.executed import Instructions, Loop

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


def test_what_runs_beside_products() -> None:
    """An innermost loop with products, or all of the code where it is unrolled."""
    assert [*CODE.beside_products()] == [*CODE.words]
    simple = Instructions.read(LISTING.replace("@P1 BRA 0x60", "@P1 MOV R3, R4"))
    assert [word.split()[0] for word in simple.beside_products()] == [
        "LDGSTS.E.64", "HMMA.16816.F32.BF16", "IADD3", "MOV", "HGMMA.64x128x16.F32.BF16", "BRA",
    ]  # fmt: skip
