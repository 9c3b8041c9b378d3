"""What the machine says of itself."""

import pytest

from calipso_runtime import devices


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu fma sse4_2 avx2 sse4_1 avx f16c aes", ("sse4_1", "sse4_2", "avx", "avx2", "fma", "f16c")),
        ("amx_tile amx_int8 avx512f avx512_vnni avx_vnni", ("avx512f", "avx512_vnni", "avx_vnni", "amx_int8")),
        ("fp asimd evtstrm asimdhp asimddp sve i8mm bf16", ("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve")),
        ("", ()),
    ],
)
def test_the_instruction_sets_are_those_that_engines_choose_by_in_a_fixed_order(
    monkeypatch: pytest.MonkeyPatch, flags: str, expected: tuple[str, ...]
) -> None:
    monkeypatch.setattr(devices, "cpu_flags", lambda: flags)

    assert devices.instruction_sets() == expected
