"""The fused step on a fake GPU: what stays there, what crosses, and the numbers of whole runs."""

import json

import numpy as np
import pytest
from fake_cuda import cudaError_t
from gpu_box import every_tensorrt, tensorrt10
from one_tile import alone, first_steps, integrated, loop, numbers

from wdm_runtime.engines import tensorrt as engine_module
from wdm_runtime.errors import EngineError
from wdm_runtime.samplers import SAMPLERS

TILE_BYTES = 4 * 16**3
SCALARS_BYTES, TIME_BYTES = 4 * 6, 4


box, box10 = every_tensorrt, tensorrt10


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("cuda_graph", [True, False])
def test_eight_steps_are_those_of_numpys_loop(box, sampler, cuda_graph):
    steps = first_steps(box.bundle, sampler, 8)
    engine = box.open_step(batch=2, cuda_graph=cuda_graph)
    assert engine.replays is cuda_graph and box.notes == []
    for tiles in (2, 1):  # of the second sample, one tile of the batch holds what is left over
        given = numbers(tiles, 8, seed=tiles)
        expected = loop(box.reference, given, steps)
        np.testing.assert_allclose(integrated(engine, given, steps), expected, atol=1e-5)
    engine.close()
    assert box.cuda.live == 0


def test_half_precision_updates_in_full_precision(box):
    steps = first_steps(box.bundle, "second-order", 8)
    given = numbers(1, 8)
    expected = loop(lambda feeds: box.reference(feeds, "score_fp16"), given, steps)
    found = integrated(box.open_step("fp16"), given, steps)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_step_is_one_launch_after_a_wait(box10):
    steps, (x, condition, noise) = first_steps(box10.bundle, "second-order", 3), numbers(1, 3)
    engine = box10.open_step()
    engine.load(x, condition)
    box10.cuda.calls.clear()
    for step, z in zip(steps, [*noise, None], strict=True):
        engine.step(step.t, step.scalars, z)
    assert box10.cuda.calls == 3 * ["cudaStreamSynchronize", "cudaGraphLaunch"]
    box10.cuda.calls.clear()
    engine.read()
    assert box10.cuda.calls == ["cudaMemcpyAsync", "cudaStreamSynchronize"]


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_the_state_never_crosses_between_steps(box10, cuda_graph):
    steps, (x, condition, noise) = first_steps(box10.bundle, "second-order", 5), numbers(1, 5)
    engine = box10.open_step(cuda_graph=cuda_graph)
    copied = box10.cuda.copied
    copied.clear()
    engine.load(x, condition)
    box10.cuda.cudaStreamSynchronize(engine._device.stream)
    assert copied == 3 * [("HostToDevice", TILE_BYTES)]  # state, condition, no estimate yet
    for step, z in zip(steps, [*noise, None], strict=True):
        engine.step(step.t, step.scalars, z)
    copied.clear()
    engine.step(steps[0].t, steps[0].scalars, noise[0])  # waits for the last of the five
    one_step = [
        ("HostToDevice", TILE_BYTES),
        ("HostToDevice", TIME_BYTES),
        ("HostToDevice", SCALARS_BYTES),
        ("DeviceToDevice", TILE_BYTES),
        ("DeviceToDevice", TILE_BYTES),
    ]
    assert copied == one_step
    engine.read()
    assert copied == 2 * one_step + [("DeviceToHost", TILE_BYTES)]


def test_noise_may_be_written_again_at_once_and_estimates_are_the_callers(box10):
    steps, (x, condition, noise) = first_steps(box10.bundle, "second-order", 3), numbers(1, 3)
    engine = box10.open_step()
    expected = loop(box10.reference, (x, condition, noise), steps)
    buffer = np.empty_like(x)
    engine.load(x, condition)
    for step, z in zip(steps, noise, strict=False):
        buffer[:] = z
        engine.step(step.t, step.scalars, buffer)
        buffer[:] = np.nan
    engine.step(steps[-1].t, steps[-1].scalars, None)
    found = engine.read()
    kept = found.copy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    engine.load(x + 1, condition)
    engine.step(steps[0].t, steps[0].scalars, noise[0])
    engine.read()
    np.testing.assert_array_equal(found, kept)


def test_what_overflowed_does_not_reach_the_next_sample(box10):
    steps, given = first_steps(box10.bundle, "second-order", 3), numbers(1, 3)
    engine = box10.open_step()
    expected = integrated(engine, given, steps)
    box10.trt.behaviour["answer"] = lambda _, values: values * np.nan
    assert np.isnan(integrated(engine, given, steps)).all()
    del box10.trt.behaviour["answer"]
    np.testing.assert_array_equal(integrated(engine, given, steps), expected)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda given, values: given["x"] + given["t"], "gives the same for every 'condition'"),
        (lambda given, values: values - values + given["noise"], "gives the same for every 'x'"),
        (lambda given, values: values * np.nan, "not finite"),
    ],
    ids=["no condition", "noise alone", "nan"],
)
def test_a_plan_that_answers_wrongly_is_an_error(box, answer, message):
    box.trt.behaviour["answer"] = answer
    with pytest.raises(EngineError, match=message):
        box.open_step()
    assert box.cuda.live == 0


def test_a_capture_that_fails_leaves_plain_launches(box):
    box.trt.behaviour["never_warm"] = True
    engine = box.open_step()
    assert not engine.replays and "without a CUDA graph" in box.notes[0]
    steps, given = first_steps(box.bundle, "second-order", 3), numbers(1, 3)
    expected = loop(box.reference, given, steps)
    np.testing.assert_allclose(integrated(engine, given, steps), expected, atol=1e-5)


def test_a_replay_that_goes_wrong_leaves_plain_launches(box10):
    capture = engine_module.Device.capture
    box10.patch.setattr(
        engine_module.Device, "capture", lambda self, queue: capture(self, lambda: None)
    )
    engine = box10.open_step()
    assert not engine.replays and "gives the same for every" in box10.notes[0]


def test_its_plan_is_another_than_the_score_graphs(box10):
    box10.open().close()
    with pytest.raises(EngineError, match=r"no plan of score_fp32.onnx with step.onnx"):
        box10.open_step(build=False)
    box10.open_step().close()
    box10.open_step(build=False).close()
    assert len(box10.trt.built) == 2


# Whole runs.


def attributes(path):
    import netCDF4

    with netCDF4.Dataset(path) as file:
        return {name: file.getncattr(name) for name in file.ncattrs()}


def rates(path):
    import netCDF4

    with netCDF4.Dataset(path) as file:
        return np.ma.filled(file["precipitation_rate"][:], np.nan)


@pytest.fixture
def shower(tmp_path):
    return alone(tmp_path / "shower.nc")


@pytest.mark.parametrize("batch", [1, 3])
def test_a_run_keeps_the_state_on_the_gpu_says_so_and_is_replayed(box, infer, run, shower, batch):
    assert infer("--engine", "ort-cpu", "-o", "cpu.nc", source=shower)[0] == 0
    fused = ("--engine", box.kind, "--precision", "fp32", "--members", 2, "--batch", batch)
    code, out, error = infer(*fused, "-o", "gpu.nc", "--report", "report.json", source=shower)
    assert code == 0, error
    assert "wholly on the engine" in out
    with open("report.json") as file:
        report = json.load(file)
    per_call = 2 if batch == 1 else 1  # both members fit into a batch of 3
    assert report["fused_steps"] == 3 * per_call and report["tiles_total"] == 6
    assert attributes("gpu.nc")["wdm_fused_steps"] == report["fused_steps"]
    np.testing.assert_allclose(rates("gpu.nc")[:, :1], rates("cpu.nc"), rtol=1e-4, atol=1e-4)
    code, out, error = run("replay", "gpu.nc", "--bundle", box.bundle.path)
    assert code == 0 and "matches bit for bit" in out, (out, error)
    assert box.cuda.live == 0


def test_numpy_step_is_the_way_out(box10, infer, shower):
    options = ("--engine", "tensorrt", "--numpy-step", "--no-pixel-probe", "-o", "gpu.nc")
    assert infer(*options, source=shower)[0] == 0
    assert attributes("gpu.nc")["wdm_fused_steps"] == 0 and len(box10.trt.built) == 1


def test_build_engine_builds_it_too_and_no_build_goes_on_without(box10, infer, run, tiny, shower):
    options = ("--engine", "tensorrt", "--no-pixel-probe", "--no-build")
    assert run("build-engine", "--bundle", tiny)[0] == 0
    # the fp32 graph too, for what fp16 cannot hold, and the pixel model's
    assert len(box10.trt.built) == 4
    code, _, error = infer(*options, "-o", "with.nc", source=shower)
    assert code == 0, error
    assert attributes("with.nc")["wdm_fused_steps"] == 3
    build = type(box10.trt.Builder(box10.trt.ILogger())).build_serialized_network
    box10.patch.setattr(
        box10.trt.Builder,
        "build_serialized_network",
        lambda self, network, config: (
            None if len(network._inputs) > 3 else build(self, network, config)
        ),
    )
    code, _, error = infer(
        "--engine", "tensorrt", "--batch", 2, "-o", "without.nc", source=shower
    )  # another batch: new plans, of which one cannot be built
    assert code == 0, error
    assert "update is done in NumPy" in error and "does not build score_fp16.onnx with" in error
    assert attributes("without.nc")["wdm_fused_steps"] == 0


def test_a_gpu_that_fails_in_the_middle_is_an_error(box10):
    steps, given = first_steps(box10.bundle, "second-order", 3), numbers(1, 3)
    engine = box10.open_step()
    box10.cuda.faults["cudaStreamSynchronize"] = cudaError_t.cudaErrorLaunchFailure
    with pytest.raises(EngineError, match="cudaErrorLaunchFailure"):
        integrated(engine, given, steps)
