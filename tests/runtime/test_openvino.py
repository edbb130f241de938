"""OpenVINO's model cache: a private folder that only ever saves time."""

import importlib.util
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from wdm_runtime.bundle import Bundle
from wdm_runtime.cache import private_folder
from wdm_runtime.engines import open_engine
from wdm_runtime.engines import openvino as openvino_engine
from wdm_runtime.engines.openvino import OpenVinoEngine
from wdm_runtime.errors import EngineError

# Not `importorskip`: an import by anyone but the engine reports to Google Analytics.
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="needs the extra 'openvino'"
)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "wdm-edge"


@pytest.fixture
def answer(tiny, cache):
    """Load the score graph anew and run it."""
    bundle = Bundle.open(tiny)
    x, condition = np.random.default_rng(0).standard_normal((2, 1, 16, 16, 16), dtype=np.float32)
    feeds = {"x": x, "condition": condition, "t": np.array([0.4], dtype=np.float32)}

    def load_and_run():
        entry = bundle.manifest.graphs["score_fp32"]
        engine = open_engine(bundle.graph("score_fp32"), entry, "openvino")
        try:
            return engine.run(feeds)
        finally:
            engine.close()

    return load_and_run


def files(cache):
    return [path for path in cache.rglob("*") if path.is_file()]


def test_the_compiled_graph_is_kept_under_its_hash_and_used_again(answer, cache, tiny):
    first = answer()
    (kept,) = files(cache)
    assert Bundle.open(tiny).manifest.graphs["score_fp32"].sha256 in kept.parts
    written = kept.stat().st_mtime_ns
    np.testing.assert_array_equal(answer(), first)
    assert files(cache) == [kept] and kept.stat().st_mtime_ns == written


@pytest.mark.parametrize("order", [("fp32", "fp16"), ("fp16", "fp32")])
def test_a_network_kept_in_one_precision_serves_no_other(tiny, cache, monkeypatch, order):
    if not set(order) <= set(OpenVinoEngine.precisions()):
        pytest.skip("this CPU computes in one of them only")
    bundle = Bundle.open(tiny)
    entry, graph = bundle.manifest.graphs["score_fp32"], bundle.graph("score_fp32")
    x, condition = np.random.default_rng(0).standard_normal((2, 1, 16, 16, 16), dtype=np.float32)
    feeds = {"x": x, "condition": condition, "t": np.array([0.4], dtype=np.float32)}

    def run(precision):
        engine = open_engine(graph, entry, "openvino", precision)
        try:
            return engine.run(feeds)
        finally:
            engine.close()

    shared = {precision: run(precision) for precision in order}
    assert np.abs(shared["fp32"] - shared["fp16"]).max() > 1e-5
    for precision in order:  # each as in a cache of its own
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache / precision))
        np.testing.assert_array_equal(run(precision), shared[precision])


def test_a_network_that_runs_in_another_precision_is_an_error(tiny, cache, monkeypatch):
    bundle = Bundle.open(tiny)
    entry, graph = bundle.manifest.graphs["score_fp32"], bundle.graph("score_fp32")
    monkeypatch.setattr(openvino_engine, "_convolutions", lambda _: {"f16"})
    with pytest.raises(EngineError, match=r"in f32 but got \['CPU'\] in f16"):
        open_engine(graph, entry, "openvino", "fp32")


def test_a_truncated_entry_is_compiled_anew(answer, cache):
    first = answer()
    (kept,) = files(cache)
    size = kept.stat().st_size
    kept.chmod(0o600)
    kept.write_bytes(kept.read_bytes()[: size // 2])
    np.testing.assert_array_equal(answer(), first)
    # A few bytes are different in every compilation.
    assert [round(path.stat().st_size / size, 2) for path in files(cache)] == [1]


def test_only_the_user_can_write_to_the_cache(answer, cache):
    answer()
    for folder in (path for path in (cache / "openvino").rglob("*") if path.is_dir()):
        assert folder.stat().st_mode & 0o077 == 0


def test_a_folder_that_others_may_write_to_is_not_used(answer, cache):
    first = answer()
    (kept,) = files(cache)
    kept.unlink()
    kept.parent.chmod(0o777)
    np.testing.assert_array_equal(answer(), first)
    assert files(cache) == []
    assert private_folder("openvino") == cache / "openvino"


def test_without_a_folder_to_write_to_it_runs_all_the_same(answer, cache):
    cache.write_text("a file in the way")
    assert private_folder("openvino") is None
    assert np.isfinite(answer()).all()


def test_threads_that_share_an_engine_get_their_own_answers(tiny, cache):
    bundle, rng = Bundle.open(tiny), np.random.default_rng(0)
    entry = bundle.manifest.graphs["score_fp32"]
    engine = open_engine(bundle.graph("score_fp32"), entry, "openvino")
    calls = [
        {"x": x, "condition": condition, "t": np.array([0.4], dtype=np.float32)}
        for x, condition in rng.standard_normal((2, 2, 1, 16, 16, 16), dtype=np.float32)
    ]
    alone = [engine.run(feeds) for feeds in calls]
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(lambda i: engine.run(calls[i]), i % 2) for i in range(200)]
    engine.close()
    assert all(np.array_equal(job.result(), alone[i % 2]) for i, job in enumerate(jobs))
