"""Which arrivals wait for reads, by the control bits of written listings."""

import pytest

from sparkwell.verify.arrivals import early_arrivals

NONE = 7
ARRIVE = "SYNCS.ARRIVE.TRANS64.A1T0 RZ, [UR5], RZ"


def listing(*instructions: tuple[str, int, int]) -> str:
    """Text, the counter that its result brings back, and the mask of counters that it waits for."""
    lines = []
    for i, (text, counter, mask) in enumerate(instructions):
        control = (1 | counter << 5 | NONE << 8 | mask << 11) << 41 | 0x123
        lines.append(f"        /*{16 * i:04x}*/   {text} ;   /* 0x0000000010020a78 */")
        lines.append(f"{' ' * 60}/* 0x{control:016x} */")
    return "\n".join(lines)


def read(counter: int = 0, name: str = "LDS.128 R4, [R2+UR4]") -> tuple[str, int, int]:
    return name, counter, 0


def other(mask: int = 0, text: str = "IADD3 R1, R2, R3, RZ") -> tuple[str, int, int]:
    return text, NONE, mask


def shuffle(counter: int) -> tuple[str, int, int]:
    return "SHFL.BFLY PT, R9, R4, 0x8, 0x1f", counter, 0


BARRIER = other(text="BAR.SYNC.DEFER_BLOCKING 0x0, 0x80")
TOLD = other(text=f"@P0 {ARRIVE}")


@pytest.mark.parametrize(
    "code",
    [
        [read(), TOLD],
        [read(name="LDSM.16.M88.4 R4, [R2]"), other(), TOLD],
        [read(2), other(0b000011), TOLD],  # waits for other counters
        [read(0), read(NONE), other(0b1), TOLD],  # the second was not waited for
        [read(0), other(0b1), read(0), TOLD],
        [read(), other(text="@P1 BRA `(.L_x_1)"), TOLD],  # not taken
        [read(name="@P3 LDS.U16 R4, [R2]"), TOLD],
        [read(name="LDS.U8 R4, [R2+UR4]"), TOLD],  # by lane: no state of a partition
        [read(NONE), shuffle(1), other(0b01), TOLD],
        [shuffle(1), read(2), other(0b10), TOLD],
        [read(), BARRIER, TOLD],
        [read(), BARRIER, other(0b1), TOLD],  # this warp's are over, others' need not be
    ],
)
def test_reads_under_way_are_found(code: list[tuple[str, int, int]]) -> None:
    (found,) = early_arrivals(listing(*code))
    assert found.startswith(f"{ARRIVE} at {16 * (len(code) - 1):04x}, LDS")
    assert found.endswith("under way")


@pytest.mark.parametrize(
    "code",
    [
        [TOLD],
        [read(3), other(0b001000), TOLD],
        [read(5), other(0b100000), TOLD],
        [read(0), read(0), other(0b1), TOLD],  # the counter is that of both
        [read(NONE), read(1), other(0b10), TOLD],  # in order: the first is over, too
        [read(3), other(text=ARRIVE.replace("ARRIVE", "PHASECHK"))],
        [read(3), (TOLD[0], NONE, 0b001000)],  # it waits itself
        [read(), other(text="BRA `(.L_x_1)"), TOLD],
        [read(), other(text="EXIT"), TOLD],
        [read(name="@!PT LDS RZ, [RZ]"), TOLD],
        [read(name="LDS.U8 R0, [UR6+0x28030]"), TOLD],
        [read(name="LDS R17, [UR4+0x28020]"), TOLD],
        [read(NONE), shuffle(1), other(0b10), TOLD],  # it came back before the shuffle
        [shuffle(1), TOLD],
        [read(), other(0b1), BARRIER, TOLD],
        [read(), BARRIER, other(0b1), BARRIER, TOLD],
        [read(), BARRIER, other(text="EXIT"), TOLD],
    ],
)
def test_reads_that_are_over_are_not(code: list[tuple[str, int, int]]) -> None:
    assert early_arrivals(listing(*code)) == []


def test_the_last_read_is_named() -> None:
    (found,) = early_arrivals(listing(read(1), read(2, "LDS R7, [R1]"), other(0b10), TOLD))
    assert "LDS R7, [R1] at 0010 under way" in found
