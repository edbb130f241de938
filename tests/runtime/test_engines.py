"""Engines: the names, what is installed, and that what was asked for is what runs."""

import importlib.metadata
import os
import subprocess
import sys

import numpy as np
import pytest

from wdm_runtime import wavelets
from wdm_runtime.bundle import Bundle
from wdm_runtime.engines import choose, open_engine
from wdm_runtime.errors import EngineError, MissingDependencyError, require


def installed(names):
    def version(name):
        if name in names:
            return "1.0"
        raise importlib.metadata.PackageNotFoundError(name)

    return version


def test_unknown_names_list_the_known():
    with pytest.raises(EngineError, match="ort-cpu"):
        choose("cuda", "auto")
    with pytest.raises(EngineError, match="fp16"):
        choose("auto", "int8")


def test_both_onnxruntime_packages_is_an_error_with_the_install_line(monkeypatch):
    monkeypatch.setattr(
        importlib.metadata, "version", installed({"onnxruntime", "onnxruntime-gpu"})
    )
    with pytest.raises(EngineError, match=r"pip install 'wdm-edge\[cpu\]'") as caught:
        choose("auto", "auto")
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in str(caught.value)


def test_no_engine_is_an_error_with_the_install_line(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", installed(set()))
    with pytest.raises(EngineError, match=r"pip install 'wdm-edge\[cpu\]'"):
        choose("auto", "auto")


def test_a_missing_extra_names_its_install_line():
    with pytest.raises(MissingDependencyError, match=r"pip install 'wdm-edge\[grib\]'") as caught:
        require("no_such_module_at_all", "grib", "Reading GRIB2")
    assert caught.value.extra == "grib" and caught.value.exit_code == 4


def test_auto_is_fp32_on_a_cpu():
    assert choose("auto", "auto") == ("ort-cpu", "fp32")
    assert choose("ort-cpu", "fp16") == ("ort-cpu", "fp16")


@pytest.fixture
def score(tiny):
    bundle = Bundle.open(tiny)
    entry = bundle.manifest.graphs["score_fp32"]
    return open_engine(bundle.graph("score_fp32"), entry, "ort-cpu")


def feeds(batch, seed=0):
    rng = np.random.default_rng(seed)
    x, condition = rng.standard_normal((2, batch, 16, 16, 16), dtype=np.float32)
    return {"x": x, "condition": condition, "t": np.array([0.4], dtype=np.float32)}


def test_outputs_belong_to_the_caller_and_follow_the_input(score):
    first = score.run(feeds(2, seed=0))
    kept = first.copy()
    second = score.run(feeds(2, seed=1))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, kept)


def test_a_batch_gives_each_tile_what_it_gets_alone(score):
    together = feeds(5)
    whole = score.run(together)
    for i in range(5):
        alone = {k: v if k == "t" else v[i : i + 1] for k, v in together.items()}
        np.testing.assert_array_equal(score.run(alone)[0], whole[i])


def test_wrong_shapes_are_engine_errors(score):
    wrong = feeds(1)
    wrong["x"] = wrong["x"][..., :-1]
    with pytest.raises(EngineError, match="failed on inputs"):
        score.run(wrong)


def test_transform_graphs_agree_with_numpy(tiny):
    bundle = Bundle.open(tiny)
    spec, graphs = bundle.manifest.wavelet, bundle.manifest.graphs
    dwt, idwt = (
        open_engine(bundle.graph(role), graphs[role], "ort-cpu") for role in ("dwt", "idwt")
    )
    field = np.random.default_rng(0).standard_normal((1, 1, 40, 76), dtype=np.float32)
    coeffs = dwt.run({"field": field})
    np.testing.assert_allclose(coeffs[0], wavelets.dwt(field[0], spec), atol=1e-5)
    np.testing.assert_allclose(idwt.run({"coeffs": coeffs}), field, atol=1e-5)


def test_an_engine_leaves_the_callers_arithmetic_alone(score):
    # ONNX Runtime's denormal option sets the calling thread's flags, and never takes them back.
    score.run(feeds(1))
    tiny = np.full(4, 1e-38, dtype=np.float32)
    assert np.all(tiny * np.float32(0.01) > 0)


def test_onnxruntime_leaves_nothing_in_the_users_folders(tiny, tmp_path):
    # Its telemetry keeps a database and a device identifier there, for uploads.
    code = f"from wdm_runtime import Downscaler; Downscaler.open({str(tiny)!r}).close()"
    places = {"HOME": tmp_path, "XDG_CACHE_HOME": tmp_path / "c", "XDG_DATA_HOME": tmp_path / "d"}
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    environment |= {name: str(path) for name, path in places.items()}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert list(tmp_path.iterdir()) == []
