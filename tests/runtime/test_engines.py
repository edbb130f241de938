"""Engines: what every one of them does with a graph, and what ONNX Runtime leaves behind."""

import importlib.metadata
import os
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
from conftest import feeds

from wdm_runtime import wavelets
from wdm_runtime.bundle import Bundle
from wdm_runtime.downscale import Downscaler
from wdm_runtime.engines import open_engine, select
from wdm_runtime.engines.numpy_transform import NumpyTransform
from wdm_runtime.engines.watched import WatchedEngine
from wdm_runtime.errors import BundleError, EngineError, MissingDependencyError, require
from wdm_runtime.opening import OpenedEngines

KINDS = (("ort-cpu", "fp32"), ("ort-cpu", "fp16"), ("openvino", "fp32"), ("openvino", "bf16"))


def installed(names):
    def version(name):
        if name in names:
            return "1.0"
        raise importlib.metadata.PackageNotFoundError(name)

    return version


def test_both_onnxruntime_packages_is_an_error_with_the_install_line(monkeypatch):
    monkeypatch.setattr(
        importlib.metadata, "version", installed({"onnxruntime", "onnxruntime-gpu"})
    )
    with pytest.raises(EngineError, match=r"pip install '\.\[cpu\]' in the clone") as caught:
        select("ort-cpu")
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in str(caught.value)


def test_a_missing_extra_names_its_install_line():
    with pytest.raises(
        MissingDependencyError, match=r"pip install '\.\[grib\]' in the clone"
    ) as caught:
        require("no_such_module_at_all", "grib", "Reading GRIB2")
    assert caught.value.extra == "grib" and caught.value.exit_code == 4


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def open_chosen(folder, kind, precision):
    """The score graph on an engine, or skip where this machine does not have it."""
    try:
        chosen = select(kind, precision)
    except (EngineError, MissingDependencyError) as error:
        pytest.skip(str(error))
    bundle, role = Bundle.open(folder), f"score_{chosen.graph}"
    entry = bundle.manifest.graphs[role]
    return open_engine(bundle.graph(role), entry, kind, precision=precision)


@pytest.fixture(params=KINDS, ids="-".join)
def score(request, tiny):
    return open_chosen(tiny, *request.param)


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


def test_a_missing_input_is_an_error_even_after_a_complete_call(score):
    complete = feeds(1)
    score.run(complete)
    del complete["condition"]
    with pytest.raises(EngineError, match="condition"):
        score.run(complete)


def test_a_closed_engine_is_an_error(score):
    score.close()
    with pytest.raises(EngineError):
        score.run(feeds(1))


def test_an_engine_says_what_it_is(score):
    assert (score.kind, score.precision) in KINDS
    assert [spec.name for spec in score.inputs] == ["x", "condition", "t"]
    assert [spec.name for spec in score.outputs] == ["v"]
    assert score.version.split()[1][0].isdigit() and "CPU" in score.device


@pytest.mark.parametrize("kind", ["ort-cpu", "openvino"])
def test_what_the_manifest_does_not_say_is_refused(tiny, kind):
    open_chosen(tiny, kind, "fp32")
    bundle = Bundle.open(tiny)
    data, entry = bundle.graph("score_fp32"), bundle.manifest.graphs["score_fp32"]
    x, *others = entry.inputs
    for changed in (replace(x, name="y"), replace(x, dtype="float16"), replace(x, shape=(1, 2))):
        with pytest.raises(EngineError, match="the manifest says"):
            open_engine(data, replace(entry, inputs=(changed, *others)), kind)
    with pytest.raises(EngineError, match="does not load"):
        open_engine(data.replace(b"Softmax", b"Reshape"), entry, kind)
    with pytest.raises(BundleError, match="is no graph"):  # before the engine has it
        open_engine(data[:5000], entry, kind)


@pytest.mark.parametrize("kind", ["ort-cpu", "openvino"])
def test_transform_graphs_agree_with_numpy(tiny, kind):
    open_chosen(tiny, kind, "fp32")
    bundle = Bundle.open(tiny)
    spec, graphs = bundle.manifest.wavelet, bundle.manifest.graphs
    dwt, idwt = (open_engine(bundle.graph(role), graphs[role], kind) for role in ("dwt", "idwt"))
    field = np.random.default_rng(0).standard_normal((1, 1, 40, 76), dtype=np.float32)
    for engine, role in ((dwt, "dwt"), (idwt, "idwt")):
        in_numpy = NumpyTransform(role, spec)
        assert (in_numpy.inputs, in_numpy.outputs) == (engine.inputs, engine.outputs)
    coeffs = dwt.run({"field": field})
    np.testing.assert_allclose(coeffs[0], wavelets.dwt(field[0], spec), atol=1e-5)
    np.testing.assert_allclose(idwt.run({"coeffs": coeffs}), field, atol=1e-5)


def test_an_engine_leaves_the_callers_arithmetic_alone(score):
    # ONNX Runtime's denormal option sets the calling thread's flags, and never takes them back.
    score.run(feeds(1))
    tiny = np.full(4, 1e-38, dtype=np.float32)
    assert np.all(tiny * np.float32(0.01) > 0)


# Largest and mean difference of wet cells, as shares of the largest and mean rate.
@pytest.mark.parametrize(
    ("kind", "precision", "largest", "mean"),
    [("openvino", "fp32", 1e-5, 1e-6), ("openvino", "bf16", 0.05, 0.03)],
)
def test_a_whole_run_is_that_of_onnx_runtime(tiny, field, kind, precision, largest, mean):
    def rates(score):
        bundle = Bundle.open(tiny)
        graphs = bundle.manifest.graphs
        dwt, idwt = (
            open_engine(bundle.graph(role), graphs[role], score.kind) for role in ("dwt", "idwt")
        )
        choice = select(score.kind, score.precision)
        watched = WatchedEngine(score, None, warnings.warn)
        opened = OpenedEngines(watched, (dwt, idwt), choice, 1)
        with Downscaler(bundle, opened) as downscaler:
            return np.stack([s.rate_mm_h for s in downscaler.downscale(field, steps=4)])

    reference = rates(open_chosen(tiny, "ort-cpu", "fp32"))
    difference = np.abs(rates(open_chosen(tiny, kind, precision)) - reference)
    wet = reference > 0.1
    assert difference.max() > 0, "the other engine did not run"
    assert difference.max() < largest * reference.max()
    assert difference[wet].mean() < mean * reference[wet].mean()


@pytest.mark.parametrize("kind", ["ort-cpu", "openvino"])
def test_nothing_is_reported_to_anybody(tiny, kind, tmp_path):
    # Both libraries leave an identifier in the user's folders when they report their use. Neither
    # does so on a build server, so the variables that would give one away are left out.
    open_chosen(tiny, kind, "fp32")
    home = tmp_path / "home"
    home.mkdir()
    code = f"""
from wdm_runtime.bundle import Bundle
from wdm_runtime.engines import open_engine
bundle = Bundle.open({str(tiny)!r})
open_engine(bundle.graph("dwt"), bundle.manifest.graphs["dwt"], {kind!r})
"""
    environment = {"HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-P", "-c", code], env=environment, check=True)
    found = [path.relative_to(home).parts for path in home.rglob("*") if path.is_file()]
    assert [parts for parts in found if "wdm-edge" not in parts] == []
