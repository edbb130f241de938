"""Half precision that overflows is computed again in fp32, said and counted; never written."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import netCDF4
import numpy as np
import pytest
from conftest import edit_manifest, feeds

from wdm_runtime import Downscaler, EngineError
from wdm_runtime.bundle import Bundle
from wdm_runtime.engines import open_engine
from wdm_runtime.engines.options import EngineOptions
from wdm_runtime.engines.watched import WatchedEngine

HUGE = 1e6  # more than fp16 holds


@pytest.fixture
def loud(tiny_copy):
    """A bundle whose conditions overflow in fp16, and not in fp32."""
    scale = json.loads((tiny_copy / "manifest.json").read_text())["condition_scale"]
    scale["std"] = [value / HUGE for value in scale["std"]]
    edit_manifest(tiny_copy, condition_scale=scale)
    return tiny_copy


def watched(tiny, notes, full=True):
    bundle = Bundle.open(tiny)

    def opened(precision):
        role = f"score_{precision}"
        return open_engine(bundle.graph(role), bundle.manifest.graphs[role], "ort-cpu", precision)

    return WatchedEngine(opened("fp16"), (lambda: opened("fp32")) if full else None, notes.append)


def test_threads_that_share_an_engine_open_fp32_once(tiny):
    opened, together = [], threading.Barrier(4)

    class Slow:
        kind = device = version = "a slow engine"
        precision, inputs, outputs = "fp16", (), ()

        def run(self, feeds):
            together.wait()
            return np.full((1, 1), np.nan, np.float32)

        def close(self):
            pass

    def open_full():
        time.sleep(0.1)
        opened.append(1)
        engine = Slow()
        engine.run = lambda feeds: np.zeros((1, 1), np.float32)
        return engine

    engine = WatchedEngine(Slow(), open_full, lambda text: None)
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(engine.run, [{}] * 4))
    assert len(opened) == 1 and engine.fp32_reruns == 4
    assert all(np.isfinite(answer).all() for answer in answers)


def test_what_overflows_is_what_fp32_gives(tiny):
    notes = []
    engine = watched(tiny, notes)
    bundle = Bundle.open(tiny)
    fp32 = open_engine(bundle.graph("score_fp32"), bundle.manifest.graphs["score_fp32"], "ort-cpu")
    for expected in (1, 2):
        np.testing.assert_array_equal(engine.run(feeds(size=HUGE)), fp32.run(feeds(size=HUGE)))
        assert engine.fp32_reruns == expected
    assert len(notes) == 1 and "computed again in fp32" in notes[0]
    assert not np.array_equal(engine.run(feeds()), fp32.run(feeds())), "fp16 is what runs"
    assert engine.fp32_reruns == 2


def test_what_is_not_finite_in_fp32_is_an_error(tiny):
    for engine in (watched(tiny, []), watched(tiny, [], full=False)):
        with pytest.raises(EngineError, match=r"not finite; expected none"):
            engine.run(feeds(size=np.inf))


def test_a_run_says_and_counts_it(loud, infer, tmp_path):
    options = ("--bundle", loud, "--engine", "ort-cpu", "--precision", "fp16")
    code, out, error = infer(*options, "-o", "out.nc", "--report", "report.json")
    assert code == 0, error
    assert "computed again in fp32" in error and "again in fp32" in out
    count = json.loads((tmp_path / "report.json").read_text())["fp32_reruns"]
    assert count > 0
    with netCDF4.Dataset(tmp_path / "out.nc") as file:
        assert file.wdm_fp32_reruns == count


def test_a_second_run_counts_its_own(loud, field):
    options = EngineOptions(note=lambda _: None)
    with Downscaler.open(loud, "ort-cpu", "fp16", options) as downscaler:
        first = list(downscaler.downscale(field, steps=2))
        before = downscaler.engine.fp32_reruns
        second = list(downscaler.downscale(field, steps=2))
        assert downscaler.engine.fp32_reruns == 2 * before > 0
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.rate_mm_h, b.rate_mm_h)
        assert np.isfinite(a.rate_mm_h).all()


def test_half_precision_that_holds_is_left_alone(infer, tmp_path):
    code, _, error = infer(
        "--engine", "ort-cpu", "--precision", "fp16", "-o", "out.nc", "--report", "report.json"
    )
    assert code == 0, error
    assert json.loads((tmp_path / "report.json").read_text())["fp32_reruns"] == 0
