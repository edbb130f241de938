"""What is said of a processor: what rounding depends on, nothing that changes between runs."""

import os
import platform

import pytest

from wdm_runtime import machine

X86 = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx2 fma avx512f\n\nprocessor\t: 1\n"
ARM = "processor\t: 0\nBogoMIPS\t: 62.50\nFeatures\t: fp asimd sve\nCPU part\t: 0xd40\n\n"


@pytest.mark.parametrize(
    ("text", "ending"), [(X86, "AMD EPYC, fma avx2 avx512f"), (ARM, "asimd sve")]
)
def test_a_processor_is_told_by_its_vector_instructions(text, ending, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
    assert machine.processor().startswith(platform.machine())
    assert machine.processor().endswith(ending)


def test_the_cores_a_process_may_use_are_no_part_of_a_processor():
    told, allowed = machine.processor(), os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert machine.processor() == told
        assert machine.available_threads() == 1
    finally:
        os.sched_setaffinity(0, allowed)
