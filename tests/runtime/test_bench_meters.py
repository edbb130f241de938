"""Energy and device memory are what the machine says, or nothing."""

import os
import time
from dataclasses import replace

import pytest

from wdm_runtime.bench.meters import Rapl, gpu_process_mib, meters
from wdm_runtime.engines import gpu_of
from wdm_runtime.engines.probe import Gpu

GPU = Gpu("A GPU", (8, 6), 8 << 30, (13, 0), "0000:65:00.0")


@pytest.fixture
def powercap(tmp_path):
    """A powercap folder as Linux has it: a package, its cores, and the whole platform."""
    for zone, name in (
        ("intel-rapl:0", "package-0"),
        ("intel-rapl:0:0", "core"),
        ("intel-rapl:1", "psys"),
    ):
        folder = tmp_path / zone
        folder.mkdir()
        (folder / "name").write_text(name + "\n")
        (folder / "energy_uj").write_text("1000000\n")
        (folder / "max_energy_range_uj").write_text("5000000\n")
    return tmp_path


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch, tmp_path_factory):
    """A PATH on which nvidia-smi is only what a test puts there."""
    folder = tmp_path_factory.mktemp("bin")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setattr("wdm_runtime.bench.meters._NVIDIA_SMI", str(folder / "nvidia-smi"))
    return folder / "nvidia-smi"


def test_only_packages_are_counted(powercap):
    (meter,) = meters(None, powercap)
    assert meter.device == "CPU package-0"


@pytest.mark.parametrize(("after", "joules"), [("3500000", 2.5), ("500000", 4.5)])
def test_joules_are_the_counters_difference_even_when_it_wraps(powercap, after, joules):
    counter = powercap / "intel-rapl:0" / "energy_uj"
    meter = Rapl(powercap / "intel-rapl:0")
    assert meter.joules(lambda: counter.write_text(after)) == pytest.approx(joules)


def test_a_counter_that_vanishes_gives_nothing(powercap):
    counter = powercap / "intel-rapl:0" / "energy_uj"
    meter = Rapl(powercap / "intel-rapl:0")
    assert meter.joules(counter.unlink) is None


def test_an_unreadable_counter_is_no_meter(powercap):
    (powercap / "intel-rapl:0" / "energy_uj").write_text("permission denied")
    assert meters(None, powercap) == [] and meters(None, powercap / "nowhere") == []


def test_without_a_gpu_nothing_is_made_up(tmp_path):
    assert gpu_process_mib() is None and meters(GPU, tmp_path) == []


def test_energy_is_that_of_the_engines_own_gpu(no_gpu, tmp_path):
    """nvidia-smi counts GPUs by where they sit, CUDA the fastest first and only those visible."""
    no_gpu.write_text(
        '#!/bin/sh\nif [ "$2" != --id=0000:65:00.0 ]; then echo "Idle GPU"; exit; fi\n'
        'case "$1" in *name) echo "A GPU";; *power*) echo 40.0;; esac\n'
    )
    no_gpu.chmod(0o755)
    (meter,) = meters(GPU, tmp_path)
    assert meter.device == "GPU A GPU"


@pytest.mark.parametrize("kind", ["ort-cpu", "openvino"])
def test_a_gpu_that_does_other_work_is_not_counted_for_the_cpu(kind, no_gpu, powercap):
    no_gpu.write_text("#!/bin/sh\necho 40.0\n")
    no_gpu.chmod(0o755)
    assert [meter.device for meter in meters(gpu_of(kind), powercap)] == ["CPU package-0"]
    assert len(meters(GPU, powercap)) == 2


def test_a_gpus_power_times_time(no_gpu, tmp_path):
    no_gpu.write_text('#!/bin/sh\ncase "$1" in *name) echo "A GPU";; *power*) echo 40.0;; esac\n')
    no_gpu.chmod(0o755)
    (meter,) = meters(GPU, tmp_path)
    began = time.perf_counter()
    joules = meter.joules(lambda: time.sleep(0.3))
    assert 0.3 * 40 <= joules <= (time.perf_counter() - began) * 40


@pytest.mark.parametrize("answer", ["[N/A]", "", "[Not Supported]"])
def test_a_gpu_that_does_not_say_is_no_meter(no_gpu, tmp_path, answer):
    no_gpu.write_text(f'#!/bin/sh\ncase "$1" in *name) echo "A GPU";; *) echo "{answer}";; esac\n')
    no_gpu.chmod(0o755)
    assert meters(GPU, tmp_path) == [] and gpu_process_mib() is None


def test_device_memory_is_this_processes(no_gpu):
    no_gpu.write_text(f"#!/bin/sh\necho '1, 900'\necho '{os.getpid()}, 123'\n")
    no_gpu.chmod(0o755)
    assert gpu_process_mib() == 123.0


def test_a_gpu_engines_energy_is_never_its_cpus_alone(no_gpu, powercap):
    assert meters(GPU, powercap) == []  # no nvidia-smi
    no_gpu.write_text("#!/bin/sh\necho 40.0\n")
    no_gpu.chmod(0o755)
    assert meters(replace(GPU, bus_id=""), powercap) == []  # whose power it says is not known
