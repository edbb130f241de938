"""`--batch auto` measures once, remembers, and never changes a result."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from wdm_runtime import batching, timing
from wdm_runtime.batching import fastest_batch
from wdm_runtime.bench.models import tile_field
from wdm_runtime.bundle import Bundle
from wdm_runtime.downscale import Downscaler
from wdm_runtime.engines.options import EngineOptions
from wdm_runtime.engines.ort import OrtCpuEngine
from wdm_runtime.engines.watched import WatchedEngine
from wdm_runtime.errors import BundleError, EngineError, InputError
from wdm_runtime.remembered import Remembered, measured

GOLDEN_CHECK = [1]  # the one call of one tile that every engine answers when it is opened
AUTO_BATCH = EngineOptions(threads=1, measure_batch=True)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "wdm-edge" / "measured" / "batch.json"


@pytest.fixture
def a_call(monkeypatch):
    """Make a call of the engine take as long as a function of its tiles says, and count calls.

    By a clock of its own: on a busy machine the real one would tell another story.
    """
    run, calls, clock = OrtCpuEngine.run, [], [0.0]
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def with_seconds(seconds):
        def slow(self, feeds):
            if "x" in feeds:
                calls.append(len(feeds["x"]))
                clock[0] += seconds(len(feeds["x"]))
            return run(self, feeds)

        monkeypatch.setattr(OrtCpuEngine, "run", slow)
        return calls

    return with_seconds


def opened(tiny, options=AUTO_BATCH):
    return Downscaler.open(tiny, "ort-cpu", "fp32", options)


def test_without_being_asked_nothing_is_measured(tiny, cache, a_call):
    calls = a_call(lambda tiles: 0.0)
    with opened(tiny, EngineOptions(threads=1)) as downscaler:
        assert downscaler.batch == 1
    assert calls == GOLDEN_CHECK and not cache.exists()


def test_batches_that_pay_are_taken(tiny, a_call):
    a_call(lambda tiles: 0.02)  # whatever the batch: the largest is best
    with opened(tiny) as downscaler:
        assert downscaler.batch == 8
        assert "Batch 8 is the fastest" in downscaler.choice.why


def test_it_stops_at_the_first_batch_that_does_not_pay(tiny, a_call):
    calls = a_call(lambda tiles: 0.02 * tiles)
    with opened(tiny) as downscaler:
        assert downscaler.batch == 1
    assert set(calls) == {1, 2}


def test_a_slow_machine_is_not_kept_waiting(tiny, a_call):
    calls = a_call(lambda tiles: 0.25)
    with opened(tiny) as downscaler:
        assert downscaler.batch == 1
    assert set(calls) == {1}


def test_little_memory_keeps_batches_small(tiny, a_call, monkeypatch):
    a_call(lambda tiles: 0.02)
    monkeypatch.setattr(batching, "available_bytes", lambda: 1 << 20)
    with opened(tiny) as downscaler:
        assert downscaler.batch == 1


def test_a_batch_that_fails_is_not_taken(tiny, a_call, monkeypatch):
    def seconds(tiles):
        if tiles > 2:
            raise EngineError("no memory")
        return 0.02

    a_call(seconds)
    with opened(tiny) as downscaler:
        assert downscaler.batch == 2


def test_it_is_remembered_by_what_could_change_it(tiny, cache, a_call):
    calls = a_call(lambda tiles: 0.02)
    with opened(tiny):
        pass
    (key,) = json.loads(cache.read_text())
    assert Bundle.open(tiny).sha256 in key and "onnxruntime" in key and "fp32" in key
    assert cache.parent.stat().st_mode & 0o077 == 0
    calls.clear()
    with opened(tiny) as downscaler:
        assert downscaler.batch == 8 and "measured fastest" in downscaler.choice.why
    assert set(calls) == set(GOLDEN_CHECK)  # no batch is tried again
    with opened(tiny, EngineOptions(threads=2, measure_batch=True)):
        assert len(calls) > 1 + len(GOLDEN_CHECK)


@pytest.mark.parametrize("damage", ["{", "[]", '{"KEY": "8"}', '{"KEY": 3}', '{"KEY": true}'])
def test_a_damaged_memory_is_measured_anew(tiny, cache, a_call, damage):
    a_call(lambda tiles: 0.02)
    with opened(tiny):
        pass
    (key,) = json.loads(cache.read_text())
    cache.write_text(damage.replace("KEY", key))
    with opened(tiny) as downscaler:
        assert downscaler.batch == 8 and "is the fastest" in downscaler.choice.why


def test_the_batch_changes_no_value(tiny, field, a_call):
    a_call(lambda tiles: 0.02)

    def rates(options):
        with opened(tiny, options) as downscaler:
            return [s.rate_mm_h for s in downscaler.downscale(field, members=3, steps=2)]

    for batched, single in zip(rates(AUTO_BATCH), rates(EngineOptions(threads=1)), strict=True):
        np.testing.assert_array_equal(batched, single)


def test_the_command_line(infer, cache):
    code, out, error = infer("--engine", "ort-cpu", "--batch", "auto", "--no-pixel-probe")
    assert code == 0, error
    assert "is the fastest: a tile takes" in " ".join(out.split())
    code, out, _ = infer("--engine", "ort-cpu", "--no-pixel-probe", "--overwrite")
    assert code == 0 and "fastest: a tile" not in out


def test_a_batch_of_none_is_refused():
    with pytest.raises(InputError, match="--batch"):
        EngineOptions(batch=0)


def test_a_remembered_batch_that_cannot_be_had_today_leaves_the_single_tile(tiny, a_call):
    a_call(lambda tiles: 0.02)
    with opened(tiny) as downscaler:
        assert downscaler.batch == 8
    bundle = Bundle.open(tiny)
    single = opened(tiny, EngineOptions(threads=1))

    def no_room(batch):
        raise EngineError("out of memory")

    known = measured("batch", bundle, single.engine, AUTO_BATCH)
    batch, engine, text = batching.fastest_batch(single.engine, no_room, known)
    assert batch == 1 and engine is single.engine and "cannot be had now: out of memory" in text
    assert len(list(single.downscale(tile_field(bundle.manifest), steps=2))) == 1


def test_a_bundle_that_fails_in_between_leaves_no_engine_open(tiny, a_call):
    a_call(lambda tiles: 1e-3)
    bundle, open_now = Bundle.open(tiny), []

    class Counted(OrtCpuEngine):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            open_now.append(self)

        def close(self):
            super().close()
            open_now.remove(self)

    def opened(batch):
        if batch > 2:
            raise BundleError("altered meanwhile")
        entry = bundle.manifest.graphs["score_fp32"]
        engine = Counted(bundle.graph("score_fp32"), entry, "fp32", 1)
        return WatchedEngine(engine, None, lambda text: None)

    with pytest.raises(BundleError, match="meanwhile"):
        fastest_batch(opened(1), opened, Remembered(None, ""))
    assert open_now == []
