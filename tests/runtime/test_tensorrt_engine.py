"""TensorRT engines on a fake GPU: what is asked of TensorRT and CUDA, and what comes back.

The fakes have the names and parameters of the real modules and run the graphs with ONNX Runtime,
so numbers are compared for real; the kernels of a GPU are not.
"""

import inspect

import numpy as np
import pytest
from conftest import feeds
from fake_cuda import FakeCuda, cudaError_t
from gpu_box import Box, every_tensorrt, tensorrt10

from wdm_runtime.engines import select
from wdm_runtime.engines import tensorrt as engine_module
from wdm_runtime.engines.options import EngineOptions
from wdm_runtime.engines.probe import Gpu
from wdm_runtime.engines.tensorrt import TensorRtEngine, precisions
from wdm_runtime.errors import EngineError

box, box10 = every_tensorrt, tensorrt10


@pytest.fixture
def rtx(tiny, tmp_path, monkeypatch):
    return Box("rtx-1.7", tiny, tmp_path, monkeypatch)


@pytest.mark.parametrize("role", ["score_fp32", "score_fp16"])
@pytest.mark.parametrize("cuda_graph", [True, False])
def test_answers_are_those_of_the_graph(box, role, cuda_graph):
    engine = box.open(role, batch=2, cuda_graph=cuda_graph)
    assert engine.replays is cuda_graph and box.notes == []
    for tiles in (1, 2, 5):
        given = feeds(tiles, seed=tiles)
        np.testing.assert_allclose(engine.run(given), box.reference(given, role), atol=1e-5)


def test_an_engine_says_what_it_is(box):
    engine = box.open("score_fp16", batch=4)
    assert (engine.kind, engine.precision, engine.batch) == (box.kind, "fp16", 4)
    assert engine.device == "Fake RTX, compute capability 8.6"
    assert engine.version == f"{box.trt.__name__} {box.trt.__version__}"
    assert [spec.name for spec in engine.inputs] == ["x", "condition", "t"]
    assert precisions(box.kind) == ("fp16", "fp32")


def test_with_a_cuda_graph_a_call_is_one_launch_and_a_wait(box10):
    engine = box10.open()
    box10.cuda.calls.clear()
    engine.run(feeds(1))
    assert box10.cuda.calls == ["cudaGraphLaunch", "cudaStreamSynchronize"]


def test_buffers_are_made_once(box10):
    engine = box10.open(cuda_graph=False)
    box10.cuda.calls.clear()
    for seed in range(3):
        engine.run(feeds(1, seed))
    assert set(box10.cuda.calls) == {"cudaMemcpyAsync", "cudaStreamSynchronize"}


def test_everything_is_given_back(box):
    engine = box.open()
    assert box.cuda.live > 8
    engine.close()
    engine.close()
    assert box.cuda.live == 0 and box.notes == []
    with pytest.raises(EngineError, match="was closed"):
        engine.run(feeds(1))


def test_full_precision_stays_full_and_rtx_is_told_the_gpu(box):
    box.open()
    (config,) = box.trt.built
    assert box.trt.BuilderFlag.TF32 not in config._flags
    if box.kind == "tensorrt-rtx":
        assert config._target == box.trt.ComputeCapability.SM86 and config._timings is None
    else:
        assert config._timings == b""


def test_rtx_has_no_plans_for_jetson(rtx):
    rtx.set_gpu(Gpu("Orin", (8, 7), 8 << 30, (12, 6)))
    with pytest.raises(EngineError, match=r"SM87; expected one of SM75.*--engine tensorrt"):
        select("tensorrt-rtx")
    with pytest.raises(EngineError, match=r"SM87; expected one of SM75.*--engine tensorrt"):
        rtx.open()
    assert rtx.cuda.live == 0


# Plans.


def test_a_plan_is_built_once(box):
    box.open().close()
    box.open(build=False).close()
    assert len(box.trt.built) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda box: {"role": "score_fp16"},
        lambda box: {"batch": 2},
        lambda box: setattr(box.trt, "__version__", "99.0"),
        lambda box: box.set_gpu(Gpu("Another", (8, 6), 8 << 30, (13, 0))),
        lambda box: box.set_gpu(Gpu("Fake RTX", (8, 9), 8 << 30, (13, 0))),
    ],
    ids=["graph", "batch", "version", "gpu", "capability"],
)
def test_whatever_a_plan_depends_on_makes_another(box, change):
    box.open().close()
    options = change(box) or {}
    with pytest.raises(EngineError, match=r"There is no plan of.*build-engine.*--no-build"):
        box.open(build=False, **options)
    box.open(**options).close()
    assert len(box.trt.built) == 2


def test_a_driver_update_keeps_the_plan(box):
    box.open().close()
    box.set_gpu(Gpu("Fake RTX", (8, 6), 8 << 30, (13, 4)))
    box.open(build=False).close()


def test_timings_shorten_the_next_build(box10):
    box10.open(batch=1).close()
    box10.open(batch=2).close()
    assert [config._timings for config in box10.trt.built] == [b"", b"timings"]


def test_rtx_keeps_what_it_compiled_until_the_driver_changes(rtx):
    rtx.open().close()
    assert "kernels" not in rtx.trt.behaviour
    rtx.open().close()
    assert rtx.trt.behaviour.pop("kernels") == b"kernels"
    rtx.set_gpu(Gpu("Fake RTX", (8, 6), 8 << 30, (13, 4)))
    rtx.open().close()
    assert "kernels" not in rtx.trt.behaviour


def test_a_truncated_plan_is_built_again(box10):
    box10.open().close()
    plan = max(box10.cache.folder.glob("*.entry"), key=lambda path: path.stat().st_size)
    plan.write_bytes(plan.read_bytes()[:-100])
    box10.open().close()
    assert len(box10.trt.built) == 2 and "damaged" in box10.notes[0]


def foreign_plan(box):
    """Make the cached plan one that TensorRT does not load, whole as it is."""
    box.open().close()
    key = engine_module.plan_key(
        box.trt, box.kind, box.bundle.graph("score_fp32"), 1, engine_module.probe_gpu()
    )
    box.cache.write(key, b"plan of another version")


def test_a_plan_that_does_not_load_is_built_again_once(box):
    foreign_plan(box)
    box.open().close()
    assert len(box.trt.built) == 2
    assert "Serialization assertion failed" in box.notes[0] and "built again" in box.notes[0]
    box.open(build=False).close()


def test_a_plan_that_does_not_load_is_an_error_where_none_may_be_built(box10):
    foreign_plan(box10)
    with pytest.raises(EngineError, match=r"does not load its plan.*--no-build"):
        box10.open(build=False)


def test_a_plan_that_never_loads_is_an_error_and_is_not_kept(box):
    """Kept, it would be built again at every start."""
    box.trt.behaviour["deserialize"] = True
    with pytest.raises(EngineError, match=r"just built.*Serialization assertion failed"):
        box.open()
    assert box.cuda.live == 0
    del box.trt.behaviour["deserialize"]
    with pytest.raises(EngineError, match="There is no plan of"):
        box.open(build=False)


def test_a_plan_that_another_process_built_meanwhile_is_taken(box):
    box.open().close()
    read = box.cache.read
    looks = []

    def too_early(key):
        looks.append(key)
        return None if len(looks) == 1 else read(key)

    box.patch.setattr(box.cache, "read", too_early)
    box.open().close()
    assert len(box.trt.built) == 1


def test_a_build_that_fails_says_why(box):
    box.trt.behaviour["build"] = "Attention was not supported by a dedicated kernel"
    with pytest.raises(EngineError, match=r"does not build score_fp32.onnx.*dedicated kernel"):
        box.open()


def test_a_file_that_is_no_graph_says_why(box):
    entry = box.bundle.manifest.graphs["score_fp32"]
    with pytest.raises(EngineError, match=r"does not parse score_fp32.onnx \(not an ONNX file\)"):
        TensorRtEngine(b"no", entry, "fp32", box.kind, box.cache, EngineOptions())


def test_building_reports_progress(box):
    seen = []
    box.open(progress=lambda *step: seen.append(step)).close()
    assert seen == [("Building engine", 1, 2), ("Building engine", 2, 2)]


def test_a_build_can_be_stopped(box):
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        box.open(progress=stop)
    assert box.cuda.live == 0 and not list(box.cache.folder.glob("*.entry"))


# What goes wrong on a GPU.


def test_a_capture_that_fails_leaves_plain_launches(box):
    box.trt.behaviour["never_warm"] = True  # waits in every run, which a capture forbids
    engine = box.open()
    assert not engine.replays
    assert len(box.notes) == 1 and "without a CUDA graph" in box.notes[0]
    np.testing.assert_allclose(engine.run(feeds(3)), box.reference(feeds(3)), atol=1e-5)
    assert box.cuda.last_error == cudaError_t.cudaSuccess  # TensorRT would trip over it
    engine.close()
    assert box.cuda.live == 0


def test_rtx_is_asked_whether_its_work_can_be_captured(rtx):
    rtx.trt.behaviour["not capturable"] = True
    engine = rtx.open()
    assert not engine.replays and "cannot be captured" in rtx.notes[0]
    assert "cudaStreamBeginCapture" not in rtx.cuda.calls
    np.testing.assert_allclose(engine.run(feeds(1)), rtx.reference(feeds(1)), atol=1e-5)


@pytest.mark.parametrize(
    "function", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"]
)
def test_cuda_graphs_that_cuda_refuses_leave_plain_launches(box10, function):
    box10.cuda.faults[function] = cudaError_t.cudaErrorInvalidValue
    engine = box10.open()
    assert not engine.replays and function in box10.notes[0]
    np.testing.assert_allclose(engine.run(feeds(1)), box10.reference(feeds(1)), atol=1e-5)


def test_a_replay_that_goes_wrong_leaves_plain_launches(box10):
    capture = engine_module.Device.capture
    box10.patch.setattr(
        engine_module.Device,
        "capture",
        lambda self, queue: capture(self, lambda: None),  # records nothing: a stale answer
    )
    engine = box10.open()
    assert not engine.replays and "gives the same for every 'x'" in box10.notes[0]
    np.testing.assert_allclose(engine.run(feeds(1)), box10.reference(feeds(1)), atol=1e-5)


@pytest.mark.parametrize(
    ("function", "status", "remedy"),
    [
        ("cudaMalloc", cudaError_t.cudaErrorMemoryAllocation, "Lower --batch"),
        ("cudaHostAlloc", cudaError_t.cudaErrorMemoryAllocation, "Lower --batch"),
        ("cudaSetDevice", cudaError_t.cudaErrorInsufficientDriver, "Update the NVIDIA driver"),
        ("cudaStreamCreateWithFlags", cudaError_t.cudaErrorInvalidValue, "--engine ort-cpu"),
        ("cudaMemcpyAsync", cudaError_t.cudaErrorInvalidValue, "--engine ort-cpu"),
        ("cudaStreamSynchronize", cudaError_t.cudaErrorLaunchFailure, "--engine ort-cpu"),
    ],
)
def test_every_status_is_checked(box10, function, status, remedy):
    box10.cuda.faults[function] = status
    with pytest.raises(EngineError, match=f"{function} gave {status.name}.*{remedy}"):
        box10.open()
    assert box10.cuda.live == 0


def test_no_memory_for_a_context_is_an_error(box):
    box.trt.behaviour["no_memory"] = True
    with pytest.raises(EngineError, match=r"has no memory to run.*Lower --batch"):
        box.open()
    assert box.cuda.live == 0


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_failing_in_the_middle_of_a_run_is_an_error(box10, cuda_graph):
    engine = box10.open(cuda_graph=cuda_graph)
    box10.cuda.faults["cudaStreamSynchronize"] = cudaError_t.cudaErrorLaunchFailure
    with pytest.raises(EngineError, match="cudaErrorLaunchFailure"):
        engine.run(feeds(1))
    box10.cuda.faults["cudaFree"] = cudaError_t.cudaErrorLaunchFailure
    engine.close()  # what cannot be freed is reported, and keeps nothing else
    assert len(box10.notes) == 4 and not box10.cuda.streams and not box10.cuda.pinned


def test_execution_that_is_refused_is_an_error(box10):
    engine = box10.open(cuda_graph=False)
    box10.trt.behaviour["execute"] = True
    with pytest.raises(EngineError, match=r"failed in score_fp32.onnx"):
        engine.run(feeds(1))


def test_the_fake_gpu_is_like_the_real_one():
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings not installed")
    for name in (name for name in vars(FakeCuda) if name.startswith("cuda")):
        ours, real = getattr(FakeCuda, name), getattr(runtime, name)
        if isinstance(ours, int):
            assert ours == real, name
        elif isinstance(ours, type):
            for member in ours:
                assert int(getattr(real, member.name)) == member, member
        else:
            parameters = list(inspect.signature(ours).parameters)[1:]
            listed = real.__doc__.split("\n")[0].partition("(")[2].rstrip(")")
            found = [p.split(":")[0].split()[-1] for p in listed.split(",") if p]
            assert parameters == found, name
