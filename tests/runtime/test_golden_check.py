"""An engine has to compute what the bundle says: one call at load shows whether it does."""

import numpy as np
import pytest
from conftest import edit_manifest

from wdm_runtime import Downscaler, engines
from wdm_runtime.bundle import Bundle
from wdm_runtime.engines import open_engine
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
    return open_engine(bundle.graph(role), bundle.manifest.graphs[role], "ort-cpu", precision)


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
    run = engines.OrtCpuEngine.run
    monkeypatch.setattr(
        engines.OrtCpuEngine, "run", lambda self, feeds: calls.append(1) or run(self, feeds)
    )
    bundle = Bundle.open(tiny)
    with Downscaler.open(tiny, "ort-cpu"):
        assert len(calls) == 1
    assert read_golden(bundle).x.shape[0] == 1


def test_an_engine_asked_for_by_name_fails_and_auto_takes_the_next(tiny, monkeypatch):
    """The first of the order computes something else: it is closed, and said to be passed over."""
    wrong = []

    def open_wrong(graph, entry, kind, precision="fp32", options=None):
        engine = open_engine(graph, entry, kind, precision, options)
        if kind == "openvino":
            engine = Wrong(engine, 1.0)
            wrong.append(engine)
        return engine

    pytest.importorskip("openvino")
    monkeypatch.setattr("wdm_runtime.opening.open_engine", open_wrong)
    with pytest.raises(EngineError, match="gives other numbers"):
        Downscaler.open(tiny, "openvino")
    monkeypatch.setattr(engines, "_AUTO_ORDER", (("openvino", "fp32"), ("ort-cpu", "fp32")))
    with Downscaler.open(tiny) as downscaler:
        assert downscaler.choice.kind == "ort-cpu"
        assert "openvino" in downscaler.choice.why and "other numbers" in downscaler.choice.why
    assert wrong and all(engine.closed for engine in wrong)
