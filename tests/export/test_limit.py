"""The bench that counts operations counts what torch counts."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

from wdm_export.unet import UNet
from wdm_runtime.bundle import Bundle

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def limit(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benches"))
    monkeypatch.delitem(sys.modules, "limit", raising=False)
    import limit

    return limit


def saved_by_phases(network, size):
    """Operations of 3 x 3 convolutions at doubled positions that are four 2 x 2 before [GFLOP]."""
    saved, edge = 0, size // 2 ** (len(network.up) - 1)  # after the first of them
    for up in network.up:
        saved += 2 * up.weight.shape[0] ** 2 * (9 - 4) * edge**2
        edge *= 2
    return saved / 1e9


def of_the_time(network):
    """Operations of the layers of the time, which GPUs get as sums [GFLOP]."""
    layers = [*network.time.layers, *(block.time for block in network.residual_blocks())]
    return sum(2 * layer.weight.numel() for layer in layers if hasattr(layer, "weight")) / 1e9


@pytest.mark.parametrize("bundle", [None, ROOT / "models" / "tiny"])
@pytest.mark.parametrize("graph", ["score_fp32", "score_fp16"])
def test_the_graphs_operations_are_those_torch_counts(limit, bundle, graph):
    opened = Bundle.open(bundle)
    _, *shape = opened.manifest.graphs[graph].inputs[0].shape
    config = limit.network_of(opened)
    network = UNet(config)
    saved = saved_by_phases(network, shape[-1]) if graph == "score_fp32" else of_the_time(network)
    expected = limit.torch_gflop(config, (1, *shape)) - saved
    assert limit.graph_gflop(opened.graph(graph)) == pytest.approx(expected, rel=1e-6)
