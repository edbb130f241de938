"""The probe asks the driver's library, here one compiled for the test, or says what is wrong."""

import shutil
import subprocess
import sys

import pytest

from wdm_runtime.engines.probe import Gpu, probe_gpu
from wdm_runtime.errors import EngineError

# Prototypes as in NVIDIA's cuda.h; INIT, COUNT and BUS are set by the test.
DRIVER = r"""
#include <string.h>
#include <stddef.h>
int cuInit(unsigned int flags) { return flags ? 1 : INIT; }
int cuDriverGetVersion(int *version) { *version = 12060; return 0; }
int cuDeviceGetCount(int *count) { *count = COUNT; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = 7; return ordinal; }
int cuDeviceGetName(char *name, int len, int dev) {
    strncpy(name, "Orin (nvgpu)", len); return dev == 7 ? 0 : 101;
}
int cuDeviceGetPCIBusId(char *id, int len, int dev) {
    strncpy(id, "0000:65:00.0", len); return BUS;
}
int cuDeviceTotalMem_v2(size_t *bytes, int dev) { *bytes = 64ull << 30; return dev == 7 ? 0 : 101; }
int cuDeviceGetAttribute(int *pi, int attrib, int dev) {
    *pi = attrib == 75 ? 8 : attrib == 76 ? 7 : -1; return dev == 7 ? 0 : 101;
}
int cuGetErrorName(int error, const char **text) {
    *text = error == 100 ? "CUDA_ERROR_NO_DEVICE" : NULL; return *text ? 0 : 1;
}
"""


@pytest.fixture
def driver(tmp_path):
    compiler = shutil.which("cc")
    if not compiler:
        pytest.skip("no C compiler")

    def build(init=0, count=1, bus=0):
        source, library = tmp_path / "driver.c", tmp_path / "libcuda.so"
        source.write_text(DRIVER)
        options = ["-shared", "-fPIC", f"-DINIT={init}", f"-DCOUNT={count}", f"-DBUS={bus}"]
        subprocess.run([compiler, *options, "-o", library, source], check=True)
        return str(library)

    return build


def test_the_first_gpu_is_described(driver):
    gpu = probe_gpu(driver())
    assert gpu == Gpu("Orin (nvgpu)", (8, 7), 64 << 30, (12, 6), "0000:65:00.0")
    assert str(gpu) == "Orin (nvgpu), compute capability 8.7"


def test_a_gpu_that_sits_on_no_bus_works_all_the_same(driver):
    assert probe_gpu(driver(bus=801)).bus_id == ""


def test_no_driver_is_an_error_with_a_remedy():
    with pytest.raises(EngineError, match=r"no NVIDIA driver.*libnone\.so.*Install the driver"):
        probe_gpu("libnone.so.1")


def test_a_driver_without_a_gpu_is_an_error(driver):
    with pytest.raises(EngineError, match=r"shows no GPU.*CUDA_VISIBLE_DEVICES"):
        probe_gpu(driver(count=0))


@pytest.mark.parametrize(
    ("status", "cause"), [(100, r"CUDA_ERROR_NO_DEVICE \(100\)"), (999, "unknown status")]
)
def test_a_driver_that_does_not_start_is_an_error(driver, status, cause):
    with pytest.raises(EngineError, match=f"cuInit gave .*{cause}.*nvidia-smi"):
        probe_gpu(driver(init=status))


def test_without_a_driver_no_gpu_library_is_loaded():
    """TensorRT 11 ends the process where there is no driver, so it must not even be imported."""
    code = (
        "import sys\n"
        "from wdm_runtime.engines import tensorrt\n"
        "from wdm_runtime.engines.probe import probe_gpu\n"
        "from wdm_runtime.errors import EngineError\n"
        "tensorrt.probe_gpu = lambda: probe_gpu('libnone.so.1')\n"
        "for kind in ('tensorrt', 'tensorrt-rtx'):\n"
        "    try: tensorrt.precisions(kind)\n"
        "    except EngineError as error: assert 'no NVIDIA driver' in str(error)\n"
        "    else: raise SystemExit('expected an error')\n"
        "assert not {'tensorrt', 'tensorrt_rtx', 'cuda'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
