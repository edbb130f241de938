"""The bench that counts operations counts what torch counts."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

from wdm_runtime.bundle import Bundle

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def limit(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benches"))
    monkeypatch.delitem(sys.modules, "limit", raising=False)
    import limit

    return limit


@pytest.mark.parametrize("bundle", [None, ROOT / "models" / "tiny"])
@pytest.mark.parametrize("graph", ["score_fp32", "score_fp16"])
def test_the_graphs_operations_are_those_torch_counts(limit, bundle, graph):
    opened = Bundle.open(bundle)
    _, *shape = opened.manifest.graphs[graph].inputs[0].shape
    expected = limit.torch_gflop(limit.network_of(opened), (1, *shape))
    assert limit.graph_gflop(opened.graph(graph)) == pytest.approx(expected, rel=1e-6)
