"""Weights that the fp16 graph shares with the fp32 graph of its bundle."""

from contextlib import suppress

import numpy as np
import pytest
from conftest import rewrite_graph
from hypothesis import given, settings
from hypothesis import strategies as st

from wdm_runtime.bundle import Bundle, default_bundle
from wdm_runtime.errors import BundleError
from wdm_runtime.onnx_weights import with_weights

onnx = pytest.importorskip("onnx", reason="needs the extra 'export'")
STORE = np.arange(64, dtype=np.float32).tobytes()
BOTH = ["tiny", "wdm2-mrms"]


def model(*places, **changes):
    """x + each of the weights at these places of a file: (offset, values)."""
    weights = []
    for number, (offset, count) in enumerate(places):
        weight = onnx.TensorProto(name=f"w{number}", dims=[count], data_type=1, data_location=1)
        given = {"location": "weights.bin", "offset": str(offset), "length": str(4 * count)}
        for key, value in {**given, **changes}.items():
            if value is not None:
                weight.external_data.add(key=key, value=value)
        weights.append(weight)
    nodes = [onnx.helper.make_node("Add", ["x", w.name], [f"y{w.name}"]) for w in weights]
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None])
        for name in ("x", "yw0")
    ]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], initializer=weights)
    return onnx.helper.make_model(graph)


def whole(given, store=STORE):
    data = with_weights(
        given.SerializeToString(), "it.onnx", lambda file: store if file == "weights.bin" else None
    )
    return onnx.load_from_string(data)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("role", ["score_fp16", "pixel_fp16"])
def test_what_is_read_is_what_onnx_reads_from_the_folder(tiny, name, role):
    bundle = Bundle.open(tiny.parent / name)
    path = bundle.path / f"{role}.onnx"
    read, by_onnx = onnx.load_from_string(bundle.graph(role)), onnx.load(path)
    for ours, theirs in zip(read.graph.initializer, by_onnx.graph.initializer, strict=True):
        assert ours.name == theirs.name and ours.data_location == 0
        values = onnx.numpy_helper.to_array(ours)
        np.testing.assert_array_equal(values, onnx.numpy_helper.to_array(theirs))
    del read.graph.initializer[:], by_onnx.graph.initializer[:]
    assert read == by_onnx
    onnx.checker.check_model(str(path), full_check=True)


def test_engines_that_open_the_file_by_themselves_get_the_same_network(tiny):
    ort = pytest.importorskip("onnxruntime")
    bundle = Bundle.open(tiny)
    rng = np.random.default_rng(0)
    shape = [int(n) for n in bundle.manifest.graphs["score_fp16"].inputs[0].shape[1:]]
    feeds = {n: rng.standard_normal((1, *shape), np.float32) for n in ("x", "condition")}
    feeds["t"] = np.array([0.4], np.float32)
    by_path, by_us = (
        ort.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(None, feeds)[0]
        for graph in (str(tiny / "score_fp16.onnx"), bundle.graph("score_fp16"))
    )
    np.testing.assert_array_equal(by_path, by_us)


def test_the_shipped_weights_are_stored_once():
    bundle = Bundle.open(default_bundle())
    sizes = {role: entry.bytes for role, entry in bundle.manifest.graphs.items()}
    for kind in ("score", "pixel"):
        assert sizes[f"{kind}_fp16"] < 0.15 * len(bundle.graph(f"{kind}_fp16"))
    assert sum(sizes.values()) < 1.2 * 2 * bundle.manifest.training["parameters"] + 2**22


def test_a_graph_without_its_sibling_or_of_another_one_is_refused(tiny_copy):
    bundle = Bundle.open(tiny_copy)
    rewrite_graph(tiny_copy, "score_fp32", bundle.graph("dwt"))
    with pytest.raises(BundleError, match=r"score_fp16.onnx: .* more values in 'score_fp32.onnx'"):
        Bundle.open(tiny_copy).graph("score_fp16")
    (tiny_copy / "score_fp32.onnx").write_bytes(b"damaged")
    with pytest.raises(BundleError, match=r"score_fp32.onnx: has 7 bytes"):
        bundle.graph("score_fp16")


def test_weights_come_from_their_places():
    found = whole(model((0, 3), (40, 2)))
    values = [onnx.numpy_helper.to_array(w).tolist() for w in found.graph.initializer]
    assert values == [[0, 1, 2], [10, 11]]


def test_a_graph_with_its_weights_inside_stays_as_it_is(tiny):
    data = (tiny / "score_fp32.onnx").read_bytes()
    assert with_weights(data, "it.onnx", lambda _: None) is data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"location": "../../etc/passwd"}, r"values in '../../etc/passwd', no other graph"),
        ({"location": "it.onnx"}, "values in 'it.onnx', no other graph"),
        ({"location": None}, r"says of its place \[b'length', b'offset'\]"),
        ({"length": None}, "says of its place"),
        ({"checksum": "0"}, "more than 3 of 'external_data'"),
        ({"offset": "-4"}, "number b'-4'"),
        ({"length": "1e9"}, "number b'1e9'"),
        ({"offset": "9" * 30}, "number b'999"),
        ({"offset": "254"}, "more values in 'weights.bin' than its 256 bytes"),
        ({"length": "4000"}, "more values in 'weights.bin' than its 256 bytes"),
    ],
)
def test_other_places_are_refused(change, message):
    with pytest.raises(BundleError, match=message) as caught:
        whole(model((0, 1), **change))
    assert str(caught.value).startswith("it.onnx: ") and "Fetch or export" in str(caught.value)


def test_many_tensors_of_one_place_do_not_fill_the_memory():
    assert len(whole(model(*[(0, 16)] * 4)).graph.initializer) == 4
    with pytest.raises(BundleError, match="more values"):
        whole(model(*[(0, 16)] * 5))


def test_values_inside_and_outside_are_refused():
    both = model((0, 1))
    both.graph.initializer[0].raw_data = b"1234"
    with pytest.raises(BundleError, match="inside and outside"):
        whole(both)


@settings(max_examples=300, deadline=2000)
@given(st.data())
def test_damaged_graphs_give_typed_errors_only(data):
    graph = bytearray(model((0, 3), (40, 2)).SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(graph) - 1))
        graph[at : at + data.draw(st.integers(0, 20))] = data.draw(st.binary(max_size=12))
    with suppress(BundleError):
        with_weights(bytes(graph), "it.onnx", lambda _: STORE)
