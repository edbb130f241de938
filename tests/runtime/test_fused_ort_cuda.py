"""The fused step in ONNX Runtime's CUDA provider: what stays on the GPU, and its numbers.

The numbers come from the real ONNX Runtime behind a made-up GPU (`fake_ort_gpu`).
"""

from concurrent.futures import ThreadPoolExecutor

import netCDF4
import numpy as np
import pytest
from fake_ort_gpu import NO_MEMORY
from gpu_box import onnxruntime_gpu
from one_tile import alone, first_steps, integrated, loop, numbers

from wdm_runtime.engines import has_step, step_pays
from wdm_runtime.errors import EngineError
from wdm_runtime.samplers import SAMPLERS

TILE_BYTES, SCALARS_BYTES, TIME_BYTES = 4 * 16**3, 4 * 6, 4


box = onnxruntime_gpu


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("cuda_graph", [True, False])
def test_steps_are_those_of_numpys_loop(box, sampler, cuda_graph):
    engine = box.open_step(batch=2, cuda_graph=cuda_graph)
    assert engine.replays is cuda_graph and box.notes == []
    for tiles, count in ((2, 8), (1, 5)):  # an odd number ends in the other place
        steps, given = first_steps(box.bundle, sampler, count), numbers(tiles, count, seed=tiles)
        expected = loop(box.reference, given, steps)
        found = integrated(engine, given, steps)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_half_precision_updates_in_full_precision(box):
    steps, given = first_steps(box.bundle, "second-order", 8), numbers(1, 8)
    expected = loop(lambda feeds: box.reference(feeds, "score_fp16"), given, steps)
    np.testing.assert_allclose(integrated(box.open_step("fp16"), given, steps), expected, atol=2e-2)


def test_each_direction_is_recorded_once_and_then_replayed(box):
    engine = box.open_step()
    assert box.ort.log.count("record") == 2
    box.ort.log.clear()
    integrated(engine, numbers(1, 5), first_steps(box.bundle, "second-order", 5))
    assert box.ort.log == ["replay"] * 5


def test_the_state_never_crosses_between_steps(box):
    steps, (x, condition, noise) = first_steps(box.bundle, "second-order", 3), numbers(1, 3)
    engine = box.open_step()
    box.ort.copied.clear()
    engine.load(x, condition)
    assert box.ort.copied == 3 * [("to", TILE_BYTES)]  # state, condition, no estimate yet
    box.ort.copied.clear()
    for step, z in zip(steps, [*noise, None], strict=True):
        engine.step(step.t, step.scalars, z)
    small = [("to", TIME_BYTES), ("to", SCALARS_BYTES)]
    assert box.ort.copied == 2 * [*small, ("to", TILE_BYTES)] + small
    box.ort.copied.clear()
    engine.read()
    assert box.ort.copied == [("from", TILE_BYTES)]


def test_estimates_are_the_callers_and_nothing_reaches_the_next_sample(box):
    steps, given = first_steps(box.bundle, "second-order", 3), numbers(1, 3)
    engine = box.open_step()
    found = integrated(engine, given, steps)
    kept = found.copy()
    box.ort.behaviour["answer"] = lambda _, values: values * np.nan
    assert np.isnan(integrated(engine, given, steps)).all()
    del box.ort.behaviour["answer"]
    np.testing.assert_array_equal(found, kept)
    np.testing.assert_array_equal(integrated(engine, given, steps), kept)


def test_steps_from_any_thread_are_those_of_one(box):
    steps, given = first_steps(box.bundle, "second-order", 3), numbers(1, 3)
    engine = box.open_step()
    expected = integrated(engine, given, steps)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(integrated, engine, given, steps).result()
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("behaviour", ["graph does not load", "does not record", "records nothing"])
def test_without_a_cuda_graph_kernels_are_launched_and_a_note_says_why(box, behaviour):
    box.ort.behaviour[behaviour] = True
    engine = box.open_step()
    assert not engine.replays and "without a CUDA graph" in box.notes[0]
    steps, given = first_steps(box.bundle, "second-order", 3), numbers(1, 3)
    expected = loop(box.reference, given, steps)
    np.testing.assert_allclose(integrated(engine, given, steps), expected, atol=1e-5)


def test_failing_in_the_middle_is_an_error(box):
    engine = box.open_step()
    engine.load(*numbers(1, 3)[:2])
    box.ort.behaviour["fails"] = NO_MEMORY
    with pytest.raises(EngineError, match=r"failed in score_fp32.onnx with .*out of memory"):
        engine.step(0.5, np.ones(6, np.float32), None)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_run_keeps_the_state_on_the_gpu_and_says_so(box, infer, run, tiny, tmp_path, batch):
    assert has_step("ort-cuda", "fp16") and step_pays("ort-cuda")
    options = ("--engine", "ort-cuda", "--batch", batch, "--members", 2, "--no-pixel-probe")
    code, out, error = infer(*options, "-o", "gpu.nc", source=alone(tmp_path / "shower.nc"))
    assert code == 0, error
    with netCDF4.Dataset("gpu.nc") as file:
        assert file.wdm_fused_steps == (6 if batch == 1 else 3)
    assert "wholly on the engine" in out
    code, out, error = run("replay", "gpu.nc", "--bundle", tiny, "--batch", batch)
    assert code == 0 and "matches bit for bit" in out, (out, error)
