"""Bundles: everything that does not fit the manifest is refused before it is parsed."""

import json

import pytest
from conftest import edit_manifest, rewrite_graph

from wdm_runtime.bundle import MANIFEST_NAME, SCHEMA_VERSION, Bundle, Domain, default_bundle
from wdm_runtime.engines import open_engine
from wdm_runtime.errors import BundleError, EngineError


def test_the_tiny_bundle_is_whole_and_small(tiny):
    bundle = Bundle.open(tiny)
    bundle.verify()
    assert sum(f.stat().st_size for f in tiny.iterdir()) < 200_000
    assert Bundle.open(tiny).sha256 == bundle.sha256


def test_manifest_survives_a_round_trip(tiny):
    bundle = Bundle.open(tiny)
    assert json.loads(bundle.manifest.to_json()) == json.loads((tiny / MANIFEST_NAME).read_text())


def test_the_shipped_bundle_is_found_and_whole():
    bundle = Bundle.open()
    bundle.verify()
    assert bundle.path == default_bundle()
    assert bundle.manifest.wavelet.levels == 2
    assert bundle.manifest.domain == Domain(1.0, (20.0, 55.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factor": None}, "missing keys .'factor'"),
        ({"surprise": 1}, "unknown .'surprise'"),
        ({"factor": "ten"}, "factor is 'ten', expected int"),
        ({"factor": True}, "factor is True"),
        ({"tile_px": 63}, "no multiple of 4"),
        ({"prediction": "noise"}, "prediction is 'noise'"),
        ({"domain": None}, "missing keys .'domain'"),
        ({"domain": {"spacing_km": 1.0}}, "domain: missing keys .'latitudes'"),
        ({"domain": {"spacing_km": "1", "latitudes": [20.0, 55.0]}}, "domain.spacing_km is '1'"),
        ({"domain": {"spacing_km": 0.0, "latitudes": [20.0, 55.0]}}, "spacing 0.0 km"),
        ({"domain": {"spacing_km": 1.0, "latitudes": [55.0, 20.0]}}, "southern and northern"),
        ({"domain": {"spacing_km": 1.0, "latitudes": [20.0]}}, "southern and northern"),
        ({"domain": {"spacing_km": 1.0, "latitudes": [20.0, 95.0]}}, "-90 and 90"),
        ({"wavelet": {"name": "haar"}}, "wavelet: missing keys .'levels'"),
        ({"wavelet": {"name": "db9", "levels": 2}}, "db9"),
        ({"graphs": {}}, "graphs missing"),
        ({"transform": []}, "transform is list"),
        ({"schema_version": SCHEMA_VERSION + 1}, "Upgrade"),
        ({"residual_scale": {"mean": [0.0], "std": [1.0]}}, "1 subband scales, expected 16"),
        ({"residual_scale": {"mean": [0.0], "std": [float("nan")]}}, "finite"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(tiny_copy, changes, message):
    edit_manifest(tiny_copy, **changes)
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.open(tiny_copy)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("text", [b"", b"{", b"[1, 2]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_a_corrupt_manifest_is_refused(tiny_copy, text):
    (tiny_copy / MANIFEST_NAME).write_bytes(text)
    with pytest.raises(BundleError, match="manifest"):
        Bundle.open(tiny_copy)


@pytest.mark.parametrize("name", ["../score.onnx", "/etc/passwd", "a/b.onnx", "..", ".hidden", ""])
def test_no_file_outside_the_folder(tiny_copy, name):
    graphs = json.loads((tiny_copy / MANIFEST_NAME).read_text())["graphs"]
    graphs["dwt"]["file"] = name
    edit_manifest(tiny_copy, graphs=graphs)
    with pytest.raises(BundleError, match="plain name"):
        Bundle.open(tiny_copy)


def test_altered_truncated_and_missing_files_are_refused(tiny_copy):
    bundle = Bundle.open(tiny_copy)
    path = tiny_copy / bundle.manifest.graphs["score_fp32"].file
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(BundleError, match="SHA-256"):
        bundle.graph("score_fp32")
    path.write_bytes(data[:-1])
    with pytest.raises(BundleError, match="bytes"):
        bundle.graph("score_fp32")
    path.unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        bundle.verify()


def test_no_bundle_and_no_such_graph(tmp_path, tiny):
    with pytest.raises(BundleError, match=r"manifest\.json"):
        Bundle.open(tmp_path)
    with pytest.raises(BundleError, match="has no graph 'score_bf16'"):
        Bundle.open(tiny).graph("score_bf16")


def test_a_graph_other_than_the_manifest_says_is_an_engine_error(tiny_copy):
    data = Bundle.open(tiny_copy).graph("idwt")
    rewrite_graph(tiny_copy, "dwt", data)
    bundle = Bundle.open(tiny_copy)
    with pytest.raises(EngineError, match="manifest says"):
        open_engine(bundle.graph("dwt"), bundle.manifest.graphs["dwt"], "ort-cpu")


def test_bytes_that_are_no_graph_are_an_engine_error(tiny_copy):
    rewrite_graph(tiny_copy, "dwt", b"not a graph")
    bundle = Bundle.open(tiny_copy)
    with pytest.raises(EngineError, match="does not load") as caught:
        open_engine(bundle.graph("dwt"), bundle.manifest.graphs["dwt"], "ort-cpu")
    assert caught.value.exit_code == 4 and caught.value.__cause__ is not None
