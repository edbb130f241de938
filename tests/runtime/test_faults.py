"""What goes wrong with engines on a box, and what becomes of it.

| fault | what happens | tested in |
|---|---|---|
| no driver, no GPU | `NoDeviceError`; under auto not a word | test_tensorrt_probe, test_ort_found |
| driver that does not start | error with CUDA's word for it | test_tensorrt_probe |
| driver too old | error: update it, or packages of an older CUDA | test_gpu_run, test_ort_found |
| TensorRT before 10 | error: upgrade; passed over by auto, with the reason | here |
| onnxruntime without CUDA, or both packages | error: what to run | test_ort_found, test_engines |
| missing cuDNN or CUDA library | error: its name, its package | test_ort_found, test_doctor |
| plan of another version, truncated plan | built again with a note | test_tensorrt_engine |
| the same with --no-build | error | test_tensorrt_engine |
| altered plan, plan others may write to | made again; error | test_plan_cache |
| truncated network in OpenVINO's cache | compiled again | here |
| full disk while a plan is kept | a note, no half entry, the run goes on | here, test_plan_cache |
| two processes build one plan | one waits and takes the other's | test_plan_cache |
| no GPU memory | error: lower --batch | test_tensorrt_engine, test_ort_cuda |
| CUDA graph refused or wrong | plain launches, a note | test_tensorrt_engine, test_ort_cuda |
| wrong answers when opened | error; passed over by auto, with the reason | here |
| failing in a run | error, also under auto; no output, an older one as it was | here |
| values that are not finite in a run | that batch again in fp32, counted | test_watched |

Under auto an engine is chosen once, before the run. One that fails in the middle ends the run: a
file has one engine, which its attributes name, and a device that failed is to be seen, not hidden.
"""

import resource
from contextlib import contextmanager

import numpy as np
import pytest
from conftest import feeds
from fake_cuda import FakeCuda, cudaError_t
from gpu_box import Box, OrtBox

from wdm_runtime.bundle import Bundle
from wdm_runtime.engines import open_engine, select
from wdm_runtime.errors import EngineError, MissingDependencyError


@pytest.fixture
def box(tiny, tmp_path_factory, monkeypatch):
    """TensorRT 10; plans are kept outside the folder a test runs in."""
    return Box("10.16", tiny, tmp_path_factory.mktemp("box"), monkeypatch)


def line_of_engine(out):
    (line,) = [text for text in out.splitlines() if text.startswith("engine: ")]
    return line


def test_auto_passes_over_an_engine_that_answers_wrongly_and_says_so(box, infer):
    box.trt.behaviour["answer"] = lambda given, values: np.zeros_like(values)
    code, out, error = infer("-o", "out.nc")
    assert code == 0, error
    line = line_of_engine(out)
    assert not line.startswith("engine: tensorrt in")
    assert "gives the same for every 'x' in score_fp16.onnx" in line
    assert box.cuda.live == 0


def test_auto_passes_over_ort_cuda_that_would_run_on_the_cpu(tiny, infer, monkeypatch):
    ort = OrtBox(tiny, monkeypatch)
    ort.ort.behaviour["on the cpu"] = True
    code, out, error = infer("-o", "out.nc")
    assert code == 0, error
    assert "engine: ort-cuda" not in out and "does not load score_fp16.onnx" in line_of_engine(out)


def test_auto_passes_over_a_tensorrt_before_10(box):
    box.trt.NetworkDefinitionCreationFlag = type("Flag", (), {"__members__": {}})
    chosen = select()
    assert chosen.kind != "tensorrt" and "expected TensorRT 10 or newer" in chosen.why


def break_after(box, calls):
    """The GPU fails for good once it has been waited for so often."""
    wait, seen = FakeCuda.cudaStreamSynchronize, []

    def failing(self, stream):
        seen.append(stream)
        if len(seen) > calls:
            self.faults["cudaStreamSynchronize"] = cudaError_t.cudaErrorLaunchFailure
        return wait(self, stream)

    box.patch.setattr(FakeCuda, "cudaStreamSynchronize", failing)
    return seen


@pytest.mark.parametrize("engine", ["auto", "tensorrt"])
@pytest.mark.parametrize("output", ["out.nc", "out.zarr"])
def test_failing_in_a_run_leaves_nothing_behind(box, infer, tmp_path, engine, output):
    if output.endswith("zarr"):
        pytest.importorskip("zarr")
    # Members and statistics are on their way to the disk by then.
    options = ("--engine", engine, "--members", 3, "--stats", "also", "-o", output)
    whole = break_after(box, 1 << 30)
    assert infer(*options)[0] == 0
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {output}
    calls = len(whole)
    break_after(box, int(0.8 * calls))
    box.cuda.faults.clear()
    options = (*options[:-1], "second." + output)
    code, _, error = infer(*options)
    assert code == 4 and "cudaErrorLaunchFailure" in error
    assert "--engine ort-cpu" in error and "Traceback" not in error
    assert {path.name for path in tmp_path.iterdir()} == made


def test_failing_in_a_run_leaves_an_older_output_as_it_was(box, infer, tmp_path):
    (tmp_path / "out.nc").write_bytes(b"older")
    break_after(box, 60)
    code, _, error = infer("-o", "out.nc", "--members", 3, "--overwrite")
    assert code == 4 and "cudaErrorLaunchFailure" in error
    assert (tmp_path / "out.nc").read_bytes() == b"older"


@pytest.mark.parametrize("engine", ["auto", "ort-cuda"])
def test_ort_cuda_failing_in_a_run_is_never_continued_elsewhere(
    tiny, infer, tmp_path, monkeypatch, engine
):
    ort = OrtBox(tiny, monkeypatch)

    def fail(given, values):
        if len(ort.ort.log) > 40:
            raise RuntimeError("CUDA failure 719: unspecified launch failure")
        return values

    ort.ort.behaviour["answer"] = fail
    code, _, error = infer("--engine", engine, "-o", "out.nc", "--members", 3)
    assert code == 4 and "CUDA failure 719" in error and "--engine ort-cpu" in error
    assert list(tmp_path.iterdir()) == []


@contextmanager
def largest_file(size):
    """As on a full disk, the system refuses to write more: here, of any one file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_without_room_for_a_plan_costs_the_next_start_only(box):
    plan_bytes = box.bundle.manifest.graphs["score_fp32"].bytes
    with largest_file(plan_bytes // 2):
        engine = box.open()
    assert len(box.notes) == 1 and "is not kept" in box.notes[0] and "too large" in box.notes[0]
    kept = [path.stat().st_size for path in box.cache.folder.iterdir()]
    assert all(size < plan_bytes // 2 for size in kept)
    np.testing.assert_allclose(engine.run(feeds()), box.reference(feeds()), atol=1e-5)
    engine.close()
    box.open().close()  # with room again it is built and kept
    box.open(build=False).close()
    assert len(box.trt.built) == 2


def test_a_truncated_network_in_openvinos_cache_is_compiled_again(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        select("openvino", "fp32")
    except (EngineError, MissingDependencyError) as error:
        pytest.skip(str(error))
    bundle = Bundle.open(tiny)

    def answer():
        entry, graph = bundle.manifest.graphs["score_fp32"], bundle.graph("score_fp32")
        engine = open_engine(graph, entry, "openvino")
        try:
            return engine.run(feeds())
        finally:
            engine.close()

    expected = answer()
    (network,) = tmp_path.rglob("*.blob")
    whole = network.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:100], b""):
        network.write_bytes(damaged)
        np.testing.assert_array_equal(answer(), expected)
