"""An engine has to compute what the bundle says: one call at load shows whether it does."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import edit_manifest
from gpu_box import Box

from wdm_runtime import Downscaler
from wdm_runtime.bundle import Bundle
from wdm_runtime.engines import choice, open_graph
from wdm_runtime.engines.families import FAMILIES
from wdm_runtime.engines.options import EngineOptions
from wdm_runtime.engines.ort import OrtCpuEngine
from wdm_runtime.engines.step import HostStep
from wdm_runtime.engines.tensorrt import TensorRtEngine
from wdm_runtime.errors import EngineError
from wdm_runtime.golden import check_engine, read_golden


class Wrong:
    """An engine that is off by a share of the largest value."""

    def __init__(self, engine, by):
        self._engine, self._by = engine, by
        self.closed = False

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def run(self, feeds):
        answer = self._engine.run(feeds)
        return answer + np.float32(self._by) * np.abs(answer).max()

    def close(self):
        self.closed = True
        self._engine.close()


def opened(bundle, precision="fp32"):
    role = f"score_{precision}"
    return open_graph(bundle, role, "ort-cpu", precision)


@pytest.mark.parametrize(("precision", "by"), [("fp32", 1e-3), ("fp16", 5e-2), ("fp32", np.nan)])
def test_another_network_is_refused(precision, by, tiny):
    bundle = Bundle.open(tiny)
    check_engine(bundle, opened(bundle, precision))
    with pytest.raises(EngineError, match=r"gives other numbers.*wdm-run selftest"):
        check_engine(bundle, Wrong(opened(bundle, precision), by))


def test_a_bundle_without_golden_file_is_let_pass(tiny_copy):
    edit_manifest(tiny_copy, files=[])
    (tiny_copy / "golden.npz").unlink()
    with Downscaler.open(tiny_copy, "ort-cpu") as downscaler:
        assert downscaler.engine.kind == "ort-cpu"


def test_one_call_is_all_it_costs(tiny, monkeypatch):
    calls = []
    run = OrtCpuEngine.run
    monkeypatch.setattr(
        OrtCpuEngine, "run", lambda self, feeds: calls.append(1) or run(self, feeds)
    )
    bundle = Bundle.open(tiny)
    with Downscaler.open(tiny, "ort-cpu"):
        assert len(calls) == 1
    assert read_golden(bundle).x.shape[0] == 1


def test_an_engine_asked_for_by_name_fails_and_auto_takes_the_next(tiny, monkeypatch):
    """The first of the order computes something else: it is closed, and said to be passed over."""
    wrong = []

    def open_wrong(bundle, role, kind, precision="fp32", options=None):
        engine = open_graph(bundle, role, kind, precision, options)
        if kind == "openvino":
            engine = Wrong(engine, 1.0)
            wrong.append(engine)
        return engine

    pytest.importorskip("openvino")
    monkeypatch.setattr("wdm_runtime.opening.open_graph", open_wrong)
    with pytest.raises(EngineError, match="gives other numbers"):
        Downscaler.open(tiny, "openvino")
    monkeypatch.setattr(choice, "AUTO_ORDER", (("openvino", "fp32"), ("ort-cpu", "fp32")))
    with Downscaler.open(tiny) as downscaler:
        assert downscaler.choice.kind == "ort-cpu"
        assert "openvino" in downscaler.choice.why and "other numbers" in downscaler.choice.why
    assert wrong and all(engine.closed for engine in wrong)


def test_an_engine_of_a_fixed_batch_has_to_compute_each_of_its_tiles(tiny, tmp_path, monkeypatch):
    box = Box("10.16", tiny, tmp_path, monkeypatch)
    run = TensorRtEngine.run

    def first_alone(self, feeds):
        answer = run(self, feeds)
        answer[1:] = 0
        return answer

    monkeypatch.setattr(TensorRtEngine, "run", first_alone)
    check_engine(box.bundle, box.open())
    with pytest.raises(EngineError, match="gives other numbers"):
        check_engine(box.bundle, box.open(batch=4))


class WrongStep(HostStep):
    """A fused step whose estimate or state is another."""

    def __init__(self, engine, wrong):
        super().__init__(engine)
        self._wrong = wrong

    def step(self, t, scalars, noise):
        before = self._x
        super().step(t, scalars, noise)
        if self._wrong == "state":
            self._x = before

    def read(self):
        return super().read() * (3 if self._wrong == "estimate" else 1)


@pytest.mark.parametrize("wrong", [None, "state", "estimate"])
def test_a_fused_step_is_checked_too(tiny, monkeypatch, wrong):
    bundle, options = Bundle.open(tiny), EngineOptions(threads=1, fused_step=True)
    family = FAMILIES["ort-cpu"]
    steps = replace(
        family, open_step=lambda *given: WrongStep(family.open_step(*given)._engine, wrong)
    )
    monkeypatch.setitem(FAMILIES, "ort-cpu", steps)
    if wrong is None:
        Downscaler.open(bundle, "ort-cpu", options=options).close()
        return
    with pytest.raises(EngineError, match="The fused step of engine 'ort-cpu' in fp32 gives other"):
        Downscaler.open(bundle, "ort-cpu", options=options)


def test_the_engine_that_computes_again_in_fp32_is_checked_when_it_is_opened(tiny, monkeypatch):
    def open_wrong(bundle, role, kind, precision="fp32", options=None):
        engine = open_graph(bundle, role, kind, precision, options)
        return Wrong(engine, 1.0) if precision == "fp32" and "score" in role else engine

    monkeypatch.setattr("wdm_runtime.opening.open_graph", open_wrong)
    downscaler = Downscaler.open(tiny, "ort-cpu", "fp16")
    with pytest.raises(EngineError, match="gives other numbers"):
        _ = downscaler.engine.full
