"""ONNX Runtime's CUDA provider: what is asked of it, and that it is never the CPU instead.

The numbers come from the real ONNX Runtime behind a made-up GPU (`fake_ort_gpu`). What the real
onnxruntime-gpu does without a GPU is tested where it is installed.
"""

import gc
import os
import signal
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import feeds
from fake_ort_gpu import FELL_BACK, NO_MEMORY
from gpu_box import onnxruntime_gpu

from wdm_runtime.bundle import Bundle
from wdm_runtime.engines import ort_cuda, select
from wdm_runtime.engines.ort_cuda import precisions
from wdm_runtime.errors import EngineError

box = onnxruntime_gpu


@pytest.mark.parametrize("role", ["score_fp32", "score_fp16"])
@pytest.mark.parametrize("cuda_graph", [True, False])
def test_answers_are_those_of_the_graph(box, role, cuda_graph):
    engine = box.open(role, batch=2, cuda_graph=cuda_graph)
    assert engine.replays is cuda_graph and box.notes == []
    for tiles in (1, 2, 5):
        given = feeds(tiles, seed=tiles)
        # A fixed batch takes other kernels, which round elsewhere: by 8e-4 of fp16's here.
        atol = 1e-5 if role.endswith("fp32") else 5e-3
        np.testing.assert_allclose(engine.run(given), box.reference(given, role), atol=atol)


def test_arrays_of_another_kind_are_made_what_the_graph_takes(box):
    engine = box.open()
    given = {name: np.asfortranarray(value, dtype=np.float64) for name, value in feeds(1).items()}
    np.testing.assert_allclose(engine.run(given), box.reference(feeds(1)), atol=1e-5)


def test_an_engine_says_what_it_is(box):
    engine = box.open("score_fp16", batch=4)
    assert (engine.kind, engine.precision, engine.batch) == ("ort-cuda", "fp16", 4)
    assert engine.device == "Fake RTX, compute capability 8.6"
    assert engine.version == "onnxruntime-gpu 1.31.1"
    assert [spec.name for spec in engine.inputs] == ["x", "condition", "t"]
    assert precisions() == ("fp16", "fp32")


@pytest.mark.parametrize(
    ("version", "works"),
    [("1.23.2", False), ("1.24.0", False), ("1.25.0", True), ("1.25.0.dev20260401", True)],
)
def test_fp16_is_offered_from_the_version_that_loads_its_graph(box, monkeypatch, version, works):
    """Before 1.25 the CUDA provider has no Resize of opset 19 in half precision."""
    box.ort.__version__ = version
    assert precisions() == (("fp16", "fp32") if works else ("fp32",))
    if works:
        return
    with pytest.raises(EngineError, match=r"'fp16'; engine 'ort-cuda' does fp32.*before 1\.25"):
        select("ort-cuda", "fp16")
    for module in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, module, None)
    assert "ort-cuda does not compute in fp16 on this machine: onnxruntime-gpu before 1.25" in (
        select().why
    )
    assert select("ort-cuda").precision == "fp32"


def test_full_precision_is_without_tf32_and_on_the_first_gpu(box):
    box.open()
    (session,) = box.ort.sessions
    assert session._options == {"device_id": "0", "use_tf32": "0", "enable_cuda_graph": "1"}


def test_a_cuda_graph_is_recorded_once_and_then_replayed(box):
    engine = box.open()
    assert box.ort.log.count("record") == 1
    box.ort.log.clear()
    engine.run(feeds(3))
    assert box.ort.log == ["replay"] * 3


def test_threads_that_share_an_engine_get_their_own_answers(box):
    """A session with a CUDA graph may be run from one thread only, at whatever time."""
    engine = box.open()
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(engine.run, [feeds(2, seed) for seed in range(8)]))
    for seed, answer in enumerate(answers):
        np.testing.assert_allclose(answer, box.reference(feeds(2, seed)), atol=1e-5)


def test_an_engine_leaves_no_thread_behind(box):
    before = threading.active_count()
    engine = box.open()
    engine.close()
    box.ort.behaviour["does not load"] = "no"
    with pytest.raises(EngineError, match="does not load"):
        box.open()
    assert threading.active_count() == before


def test_a_fork_gets_an_error_and_does_not_wait_for_a_thread_it_has_not(box):
    engine = box.open()
    child = os.fork()
    if not child:
        signal.alarm(20)  # what waits for ever ends here, with another code
        code = 1
        try:
            engine.run(feeds(1))
        except EngineError as error:
            engine.close()
            code = 0 if "after the fork" in str(error) else 2
        os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert engine.run(feeds(1)).shape[0] == 1  # the parent's own goes on
    engine.close()


def test_an_engine_that_is_closed_as_the_interpreter_ends_raises_nothing_untyped(box):
    engine = box.open()
    engine._thread.shutdown()  # as concurrent.futures does before other functions at exit
    with pytest.raises(EngineError, match="cannot be run any more"):
        engine.run(feeds(1))
    engine.close()
    with pytest.raises(EngineError, match="was closed"):
        engine.run(feeds(1))


def test_a_closed_engine_is_an_error(box):
    engine = box.open()
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="was closed"):
        engine.run(feeds(1))


def test_what_the_manifest_does_not_say_is_refused(box):
    entry = box.bundle.manifest.graphs["score_fp32"]
    with pytest.raises(EngineError, match="the manifest says"):
        ort_cuda.OrtCudaEngine(
            box.bundle.graph("pixel_fp32"), entry, "fp32", box.options(cuda_graph=False)
        )


# Never the CPU.


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_a_session_that_would_run_on_the_cpu_is_an_error(box, cuda_graph):
    box.ort.behaviour["on the cpu"] = True
    with pytest.raises(EngineError, match=r"does not load score_fp32\.onnx") as caught:
        box.open(cuda_graph=cuda_graph)
    assert FELL_BACK in str(caught.value) and box.notes == []


def test_one_node_on_the_cpu_is_an_error(box):
    box.ort.behaviour["one node on the cpu"] = True
    with pytest.raises(EngineError, match="CPUExecutionProvider, CUDAExecutionProvider"):
        box.open()


@pytest.mark.parametrize("bundle", ["tiny", "wdm2-mrms"])
@pytest.mark.parametrize("role", ["score_fp16", "score_fp32", "pixel_fp16"])
def test_with_the_batch_fixed_no_node_is_left_that_belongs_on_the_cpu(tiny, tmp_path, bundle, role):
    """ONNX Runtime puts the arithmetic of shapes there, and refuses to where that is forbidden."""
    onnx = pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.add_free_dimension_override_by_name("batch", 3)
    # What is done before nodes are given to providers.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "basic.onnx")
    options.log_severity_level = 3
    graph = Bundle.open(tiny.parent / bundle).graph(role)
    ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    left = {node.op_type for node in onnx.load(tmp_path / "basic.onnx").graph.node}
    assert "Conv" in left
    assert not left & {"Shape", "Size", "Range", "ConstantOfShape", "If", "Loop", "Scan"}


# What goes wrong.


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("graph does not load", "cannot use the graph capture feature"),
        ("does not record", "stream is capturing"),
        ("records nothing", "gives the same for every 'x'"),
    ],
)
def test_without_a_cuda_graph_kernels_are_launched_and_a_note_says_why(box, behaviour, reason):
    box.ort.behaviour[behaviour] = True
    engine = box.open()
    assert not engine.replays
    assert len(box.notes) == 1 and "without a CUDA graph" in box.notes[0]
    assert reason in box.notes[0]
    box.ort.log.clear()
    np.testing.assert_allclose(engine.run(feeds(3)), box.reference(feeds(3)), atol=1e-5)
    assert box.ort.log == ["plain"] * 3


@pytest.mark.parametrize("behaviour", ["does not record", "records nothing"])
def test_a_session_that_failed_is_gone_before_the_next_is_opened(box, behaviour):
    """Its memory on the GPU is what the next one needs."""
    gc.disable()
    try:
        box.ort.behaviour[behaviour] = True
        engine = box.open()
        first = weakref.ref(box.ort.sessions.pop(0))
        assert first() is None and not engine.replays
    finally:
        gc.enable()


def test_a_cuda_graph_that_gives_other_values_is_not_used(box):
    def drift(_, values):
        return values + (0.1 if box.ort.log[-1] in ("record", "replay") else 0)

    box.ort.behaviour["answer"] = drift
    engine = box.open()
    assert not engine.replays and "gives other values with a CUDA graph" in box.notes[0]
    np.testing.assert_allclose(engine.run(feeds(1)), box.reference(feeds(1)), atol=1e-5)


def test_no_memory_is_an_error_with_a_remedy(box):
    box.ort.behaviour["no memory for tensors"] = True
    with pytest.raises(EngineError, match=r"out of memory.*Lower --batch"):
        box.open()


def test_failing_in_the_middle_of_a_run_is_an_error(box):
    engine = box.open()
    box.ort.behaviour["fails"] = NO_MEMORY
    with pytest.raises(EngineError, match=r"failed in score_fp32.onnx.*out of memory.*--batch"):
        engine.run(feeds(1))
