"""Bundles: everything that does not fit the manifest is refused before it is parsed."""

import json
import os
import socket
import stat
import tracemalloc
from contextlib import suppress
from dataclasses import asdict

import pytest
from conftest import edit_manifest, rewrite_graph
from filter_banks import BANKS, DB2, spec_of, spread_haar
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wdm_runtime.bundle import Bundle, default_bundle
from wdm_runtime.engines import open_engine
from wdm_runtime.errors import BundleError, EngineError
from wdm_runtime.manifest import MANIFEST_NAME, SCHEMA_VERSION, Domain


def wavelet(name, **filters):
    """A manifest's entry with filters, some of them changed, or left out if None."""
    bank = {**asdict(BANKS.get(name, DB2)), **filters}
    bank = {key: taps for key, taps in bank.items() if taps is not None}
    return {"name": name, "levels": 2, "filters": bank}


def test_the_tiny_bundle_is_whole_and_small(tiny):
    bundle = Bundle.open(tiny)
    bundle.verify()
    assert sum(f.stat().st_size for f in tiny.iterdir()) < 200_000
    assert Bundle.open(tiny).sha256 == bundle.sha256


def test_manifest_survives_a_round_trip(tiny):
    bundle = Bundle.open(tiny)
    assert json.loads(bundle.manifest.to_json()) == json.loads((tiny / MANIFEST_NAME).read_text())


@pytest.mark.parametrize("name", BANKS)
def test_filters_survive_a_round_trip_and_haar_is_without(tiny_copy, name):
    haar = json.loads((tiny_copy / MANIFEST_NAME).read_text())["wavelet"]
    assert haar == {"name": "haar", "levels": 2}
    edit_manifest(tiny_copy, wavelet=wavelet(name))
    manifest = Bundle.open(tiny_copy).manifest
    assert manifest.wavelet == spec_of(name)
    assert json.loads(manifest.to_json()) == json.loads((tiny_copy / MANIFEST_NAME).read_text())


def test_filters_that_are_null_are_none(tiny_copy):
    expected = Bundle.open(tiny_copy).manifest
    edit_manifest(tiny_copy, wavelet={"name": "haar", "levels": 2, "filters": None})
    assert Bundle.open(tiny_copy).manifest == expected


def test_tiles_hold_what_the_graphs_of_long_filters_need(tiny_copy):
    edit_manifest(tiny_copy, wavelet=wavelet("long", **asdict(spread_haar(64))))
    assert Bundle.open(tiny_copy).manifest.wavelet.least_coeffs == 16


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
        ({"wavelet": {"name": "db2", "levels": 2, "filters": None}}, "'db2' comes without filters"),
        ({"wavelet": wavelet("db2", rec_hi=None)}, "filters: missing keys .'rec_hi'"),
        ({"wavelet": wavelet("db2", dec_lo=["1"] * 4)}, "dec_lo.0. is '1', expected float"),
        ({"wavelet": wavelet("db2", dec_lo=[[0.5]] * 4)}, "dec_lo.0. is .0.5., expected float"),
        ({"wavelet": wavelet("db2", dec_lo=[0.5] * 3)}, "of .3, 4. taps"),
        ({"wavelet": wavelet("db2", dec_lo=[float("nan")] * 4)}, "finite number"),
        ({"wavelet": wavelet("db2", dec_lo=[0.5] * 4)}, "perfect reconstruction"),
        ({"wavelet": wavelet("haar")}, "'haar' comes with filters of its own"),
        ({"wavelet": wavelet("d\nb2")}, "plain name"),
        ({"wavelet": wavelet("long", **asdict(spread_haar(72)))}, "tile 64 is too small for the"),
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


@pytest.mark.parametrize(
    ("name", "message"),
    [
        *(
            (name, "plain name")
            for name in ("a\\b.onnx", "C:dwt.onnx", "dwt.onnx\x00", "dwt.", "-f")
        ),
        *((name, "plain name") for name in ("NUL", "con.onnx", "Com1.a.b", "x" * 101, "dẘt.onnx")),
        *(
            (name, "is taken")
            for name in ("manifest.json", "MANIFEST.SIG", "idwt.onnx", "IDWT.ONNX")
        ),
    ],
)
def test_no_name_that_is_another_file_somewhere(tiny_copy, name, message):
    graphs = json.loads((tiny_copy / MANIFEST_NAME).read_text())["graphs"]
    graphs["dwt"]["file"] = name
    edit_manifest(tiny_copy, graphs=graphs)
    with pytest.raises(BundleError, match=message):
        Bundle.open(tiny_copy)


@pytest.mark.parametrize("what", ["link", "dangling link", "folder", "fifo", "socket", "device"])
@pytest.mark.parametrize("role", ["dwt", None])
def test_only_regular_files_of_the_folder_are_read(tiny_copy, tmp_path, monkeypatch, what, role):
    bundle = Bundle.open(tiny_copy)
    path = tiny_copy / (bundle.manifest.graphs[role].file if role else MANIFEST_NAME)
    path.rename(tmp_path / "real")
    if what == "link":
        path.symlink_to(tmp_path / "real")
    elif what == "dangling link":
        path.symlink_to(tmp_path / "nothing")
    elif what == "folder":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)  # opening one to read waits for a writer
    elif what == "socket":
        monkeypatch.chdir(tiny_copy)  # names of sockets are short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    else:
        try:
            os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero never ends
        except PermissionError:
            pytest.skip("needs root")
    with pytest.raises(BundleError, match=r"cannot be read|no readable"):
        bundle.graph(role) if role else Bundle.open(tiny_copy)


def test_no_more_is_read_than_declared(tiny_copy):
    """A sparse terabyte takes no time and no memory."""
    bundle = Bundle.open(tiny_copy)
    entry = bundle.manifest.graphs["dwt"]
    os.truncate(tiny_copy / entry.file, 1 << 40)
    with pytest.raises(BundleError, match=f"more than {entry.bytes} bytes"):
        bundle.graph("dwt")
    os.truncate(tiny_copy / MANIFEST_NAME, 1 << 40)
    with pytest.raises(BundleError, match="more than 4194304 bytes"):
        Bundle.open(tiny_copy)


def test_a_size_that_is_not_there_is_not_allocated(tiny_copy):
    graphs = json.loads((tiny_copy / MANIFEST_NAME).read_text())["graphs"]
    graphs["dwt"]["bytes"] = (1 << 31) - 1
    edit_manifest(tiny_copy, graphs=graphs)
    bundle = Bundle.open(tiny_copy)
    tracemalloc.start()
    with pytest.raises(BundleError, match="expects 2147483647"):
        bundle.graph("dwt")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
    graphs["dwt"]["bytes"] = 1 << 31
    edit_manifest(tiny_copy, graphs=graphs)
    with pytest.raises(BundleError, match="2147483648 bytes"):
        Bundle.open(tiny_copy)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('"factor": 1e999', "not a finite number"),
        ('"factor": NaN', "NaN is not a finite number"),
        ('"factor": -Infinity', "-Infinity is not a finite number"),
        ('"factor": ' + "9" * 5000, "5000 digits"),
        ('"factor": ' + "9" * 19, "19 digits"),
        ('"factor": 10, "factor": 10', "stands twice"),
        ('"training": {"a": 1, "a": 2}', "stands twice"),
        ('"training": {"a": ' + "[" * 40 + "]" * 40 + "}", "nested more than 32"),
        ('"training": ' + '{"a":' * 50_000, "valid manifest"),
        ('"name": "\\ud800"', "surrogates"),
        ('"name": "\\u001b[2J"', "name or licence"),
        ('"name": "' + "x" * 201 + '"', "name or licence"),
        ('"' + "k" * 100_000 + '": 1', "more than 200 characters"),
        ('"factor": 1048577', "too large"),
        ('"factor": "' + "x" * 100_000 + '"', "expected int"),
    ],
)
def test_json_that_parsers_read_differently_is_refused(tiny_copy, text, message):
    path = tiny_copy / MANIFEST_NAME
    key = text.partition(":")[0].strip('"')
    values = {k: v for k, v in json.loads(path.read_text()).items() if k != key}
    path.write_text("{" + text + ", " + json.dumps(values)[1:])
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.open(tiny_copy)
    assert len(str(caught.value)) < 1000


def test_a_hash_that_is_none_and_tensors_of_no_shape_are_refused(tiny_copy):
    graphs = json.loads((tiny_copy / MANIFEST_NAME).read_text())["graphs"]
    for change in (
        {"sha256": ""},
        {"sha256": graphs["dwt"]["sha256"].upper()},
        {"bytes": -1},
        {"inputs": []},
        {"outputs": [{"name": "y", "dtype": "float32", "shape": [1 << 40]}]},
        {"outputs": [{"name": "y", "dtype": "float32", "shape": [1] * 9}]},
    ):
        edit_manifest(tiny_copy, graphs={**graphs, "dwt": {**graphs["dwt"], **change}})
        with pytest.raises(BundleError, match="is not a valid manifest"):
            Bundle.open(tiny_copy)


@settings(
    max_examples=300, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_a_damaged_manifest_gives_typed_errors_only(tiny, tmp_path, data):
    text = bytearray((tiny / MANIFEST_NAME).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at : at + data.draw(st.integers(0, 30))] = data.draw(st.binary(max_size=12))
    (tmp_path / MANIFEST_NAME).write_bytes(text)
    with suppress(BundleError):
        Bundle.open(tmp_path)


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


def test_bytes_that_are_no_graph_reach_no_parser(tiny_copy):
    rewrite_graph(tiny_copy, "dwt", b"not a graph")
    bundle = Bundle.open(tiny_copy)
    with pytest.raises(BundleError, match="is no graph") as caught:
        bundle.graph("dwt")
    assert caught.value.exit_code == 3 and caught.value.__cause__ is not None
    with pytest.raises(BundleError, match="is no graph"):
        open_engine(b"not a graph", bundle.manifest.graphs["dwt"], "ort-cpu")
    with pytest.raises(BundleError, match="is no graph"):
        bundle.verify()


def test_a_graph_that_makes_no_sense_is_an_engine_error(tiny_copy):
    rewrite_graph(tiny_copy, "dwt", Bundle.open(tiny_copy).graph("dwt").replace(b"Conv", b"Gemm"))
    bundle = Bundle.open(tiny_copy)
    with pytest.raises(EngineError, match="does not load") as caught:
        open_engine(bundle.graph("dwt"), bundle.manifest.graphs["dwt"], "ort-cpu")
    assert caught.value.exit_code == 4 and caught.value.__cause__ is not None
