"""`wdm-run` on a box with a (fake) GPU: plans, what auto takes, and whole runs."""

import sys
from pathlib import Path

import numpy as np
import pytest
from fake_cuda import cudaError_t
from gpu_box import Box, every_tensorrt, tensorrt10

from wdm_runtime.downscale import Downscaler
from wdm_runtime.engines import select
from wdm_runtime.engines import tensorrt as engine_module
from wdm_runtime.engines.options import EngineOptions
from wdm_runtime.engines.probe import Gpu
from wdm_runtime.errors import EngineError, NoDeviceError, OutputError

box, box10 = every_tensorrt, tensorrt10


def rates(path):
    import netCDF4

    with netCDF4.Dataset(path) as file:
        return np.ma.filled(file["precipitation_rate"][:], np.nan)


@pytest.mark.parametrize("batch", ["auto", 3])
def test_a_run_gives_what_the_cpu_gives(box, infer, batch):
    code, _, error = infer("--engine", "ort-cpu", "-o", "cpu.nc")
    assert code == 0, error
    code, out, error = infer(
        "--engine", box.kind, "--precision", "fp32", "--batch", batch, "-o", "gpu.nc"
    )
    assert code == 0, error
    assert "Fake RTX, compute capability 8.6" in out
    np.testing.assert_allclose(rates("gpu.nc"), rates("cpu.nc"), rtol=1e-4, atol=1e-4)
    assert box.cuda.live == 0


def test_auto_takes_the_gpu_in_half_precision(box):
    chosen = select()
    assert (chosen.kind, chosen.precision, chosen.graph) == (box.kind, "fp16", "fp16")


def test_an_engine_that_does_not_open_is_passed_over_by_auto_and_named(box10, infer):
    box10.trt.Builder.build_serialized_network = lambda *_: None
    code, out, error = infer("-o", "out.nc")
    assert code == 0, error
    assert "engine: " in out and "does not build score_fp16.onnx" in out


def test_a_tensorrt_that_does_not_start_is_passed_over_by_auto_and_named(box, infer):
    box.set_wheel(None)
    box.trt.behaviour["no cuda"] = True
    code, out, error = infer("-o", "out.nc")
    assert code == 0, error
    assert f"{box.trt.__name__} {box.trt.__version__} does not start" in " ".join(out.split())


def test_auto_goes_on_to_fp32_where_no_lower_precision_opens(box10):
    lower = (("tensorrt", "fp16"), ("tensorrt-rtx", "fp16"), ("ort-cuda", "fp16"))
    chosen = select(rejected={way: "does not\nopen." for way in (*lower, ("openvino", "bf16"))})
    assert (chosen.kind, chosen.precision) == ("tensorrt", "fp32")
    assert "does not open." in chosen.why  # in one line


def test_what_was_opened_is_closed_when_a_later_part_fails(box10, tiny):
    build = box10.trt.Builder.build_serialized_network
    box10.patch.setattr(
        box10.trt.Builder,
        "build_serialized_network",
        lambda self, network, config: (
            None if len(network._inputs) > 3 else build(self, network, config)
        ),
    )
    with pytest.raises(EngineError, match=r"does not build .* with step.onnx"):
        Downscaler.open(tiny, "tensorrt", options=EngineOptions(fused_step=True))
    assert box10.cuda.live == 0


def test_an_engine_asked_for_by_name_is_never_replaced(box10, infer, tmp_path):
    box10.trt.Builder.build_serialized_network = lambda *_: None
    code, _, error = infer("--engine", "tensorrt", "-o", "out.nc")
    assert code == 4 and "does not build score_fp16.onnx" in error
    assert not (tmp_path / "out.nc").exists()


def test_no_build_refuses_until_the_plan_is_there(box, infer, run, tiny):
    code, _, error = infer("--engine", box.kind, "--no-build", "-o", "out.nc")
    assert code == 4 and "wdm-run build-engine" in error
    code, out, error = run("build-engine", "--engine", box.kind, "--bundle", tiny)
    assert code == 0, error
    assert "batch 1" in out and "ms a tile on Fake RTX" in out
    assert "building the plan" in error
    code, _, error = infer("--engine", box.kind, "--no-build", "-o", "out.nc")
    assert code == 0, error
    assert error == "" and "pixel model" in out  # nothing is left to build
    options = EngineOptions(build=False)
    with Downscaler.open(tiny, box.kind, options=options) as downscaler:
        assert downscaler.choice.precision == "fp16"
        assert downscaler.engine.full.precision == "fp32"  # for batches that fp16 cannot hold


@pytest.fixture
def turing(tiny, tmp_path, monkeypatch):
    """TensorRT-RTX on a GPU it has no fp32 matrix products for."""
    box = Box("rtx-1.7", tiny, tmp_path, monkeypatch)
    box.set_gpu(Gpu("Tesla T4", (7, 5), 15 << 30, (13, 0)))
    build = box.trt.Builder.build_serialized_network
    full = (box.bundle.graph("score_fp32"), box.bundle.graph("pixel_fp32"))

    def refuse(self, network, config):
        if network._graph in full:
            self._log.log(box.trt.ILogger.Severity.ERROR, "FP32 GEMM is not supported")
            return None
        return build(self, network, config)

    monkeypatch.setattr(box.trt.Builder, "build_serialized_network", refuse)
    return box


def test_rtx_computes_in_fp16_alone_where_it_has_no_fp32(turing, infer, run, tiny):
    assert select("tensorrt-rtx").precision == "fp16"
    with pytest.raises(EngineError, match=r"does fp16 on this machine: .*capability 7\.5"):
        select("tensorrt-rtx", "fp32")
    code, out, error = run("build-engine", "--engine", "tensorrt-rtx", "--bundle", tiny)
    assert code == 0, error
    assert "tensorrt-rtx in fp16, batch 1" in out
    assert "cannot be computed again in fp32" in " ".join(error.split())
    code, _, error = infer("--engine", "tensorrt-rtx", "--no-build", "-o", "out.nc")
    assert code == 0 and error == ""
    code, out, _ = run("selftest", "--engine", "tensorrt-rtx", "--bundle", tiny)
    assert code == 0, out


def test_what_fp16_cannot_hold_is_an_error_where_there_is_no_fp32(turing):
    with Downscaler.open(turing.bundle.path, "tensorrt-rtx") as downscaler:
        assert downscaler.engine.full is None
        turing.trt.behaviour["answer"] = lambda given, values: values * np.nan
        feeds = {name: np.zeros((1, 16, 16, 16), np.float32) for name in ("x", "condition")}
        with pytest.raises(EngineError, match=r"in fp16 gave .* not finite.*--engine ort-cpu"):
            downscaler.engine.run({**feeds, "t": np.zeros(1, np.float32)})


def test_a_rescue_that_does_not_build_is_noted(box10, run, tiny):
    """The plans that a run starts with are built all the same."""
    build, full = box10.trt.Builder.build_serialized_network, box10.bundle.graph("score_fp32")
    box10.patch.setattr(
        box10.trt.Builder,
        "build_serialized_network",
        lambda self, network, config: (
            None if network._graph == full else build(self, network, config)
        ),
    )
    code, out, error = run("build-engine", "--bundle", tiny)
    assert code == 0 and "tensorrt in fp16, batch 1" in out
    assert "cannot be computed again in fp32" in " ".join(error.split())
    assert "does not build score_fp32.onnx" in " ".join(error.split())


def test_a_user_without_a_home_builds_plans_and_keeps_none(box10, infer, run, tiny, monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    words = ("--engine", box10.kind, "--no-pixel-probe")
    code, _, error = infer(*words, "-o", "out.nc")
    assert code == 0 and "is not kept: there is no cache folder. Set XDG_CACHE_HOME" in error
    code, _, error = infer(*words, "-o", "next.nc", "--no-build")
    assert code == EngineError.exit_code and "XDG_CACHE_HOME" in error
    code, _, error = run("build-engine", "--bundle", tiny)
    assert code == OutputError.exit_code and "XDG_CACHE_HOME" in error


def test_one_command_builds_plans_of_several_batches(box10, infer, run, tiny):
    sizes = ("--batch", 1, "--batch", 4)
    code, out, error = run("build-engine", "--bundle", tiny, *sizes)
    assert code == 0, error
    assert "batch 1" in out and "batch 4" in out
    options = ("--engine", "tensorrt", "--no-build", "--no-pixel-probe")
    assert infer(*options, "--batch", 4, "-o", "four.nc")[0] == 0
    assert infer(*options, "--batch", 2, "-o", "two.nc")[0] == 4


def test_a_driver_that_is_too_old_says_so(box10, infer):
    box10.cuda.faults["cudaSetDevice"] = cudaError_t.cudaErrorInsufficientDriver
    code, _, error = infer("--engine", "tensorrt", "-o", "out.nc")
    assert code == 4 and "Update the NVIDIA driver" in error


def test_without_a_driver_auto_says_nothing_of_gpus(monkeypatch):
    def no_driver():
        raise NoDeviceError("There is no NVIDIA driver")

    monkeypatch.setattr(engine_module, "probe_gpu", no_driver)
    assert "NVIDIA" not in select().why and "tensorrt" not in select().why
    with pytest.raises(EngineError, match="no NVIDIA driver"):
        select("tensorrt")


def test_a_gpu_without_tensorrt_says_what_to_install(monkeypatch):
    monkeypatch.setattr(engine_module, "probe_gpu", lambda: Gpu("A", (8, 6), 1 << 30, (13, 0)))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert "pip install '.[gpu]' in the clone" in select().why
