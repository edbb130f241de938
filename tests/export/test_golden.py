"""The golden file holds what torch gives for inputs that fp16 holds exactly."""

import io

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from small_training import TILE, random_network  # noqa: E402

from wdm_export.golden import golden_file  # noqa: E402


def test_the_network_gives_these_outputs_again():
    network = random_network()
    data = golden_file(network, TILE)
    assert data == golden_file(network, TILE)
    file = np.load(io.BytesIO(data), allow_pickle=False)
    x, condition = (file[name].astype(np.float32) for name in ("x", "condition"))
    assert len(set(file["t"])) == len(file["v"]) > 1
    with torch.inference_mode():
        for time, expected in zip(file["t"], file["v"], strict=True):
            inputs = [torch.from_numpy(a) for a in (x, condition)]
            got = network(*inputs, torch.tensor([time]))[0].numpy()
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
