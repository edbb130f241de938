"""ONNX graphs: what engines are promised, and the gate that compares them."""

import logging
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from conftest import MODELS  # noqa: E402
from onnx import TensorProto, numpy_helper  # noqa: E402
from small_training import TILE, random_network, score_graph_once, small  # noqa: E402

from wdm_export import graphs, parity  # noqa: E402
from wdm_export.compiler_form import GpuForm  # noqa: E402
from wdm_export.config import NetworkConfig  # noqa: E402
from wdm_export.filter_banks import named_wavelet  # noqa: E402
from wdm_runtime import wavelets  # noqa: E402
from wdm_runtime.engines import open_engine  # noqa: E402
from wdm_runtime.engines.options import EngineOptions  # noqa: E402
from wdm_runtime.errors import ParityError  # noqa: E402
from wdm_runtime.manifest import TensorSpec  # noqa: E402
from wdm_runtime.onnx_gate import check_graph  # noqa: E402
from wdm_runtime.wavelets import WaveletSpec  # noqa: E402

PRECISIONS = pytest.mark.parametrize("fp16", [False, True], ids=["fp32", "fp16"])
SIZE = TILE // 4
TILE_SPEC = ("batch", 16, SIZE, SIZE)
INPUTS = (
    TensorSpec("x", "float32", TILE_SPEC),
    TensorSpec("condition", "float32", TILE_SPEC),
    TensorSpec("t", "float32", (1,)),
)
WAVELETS = ("haar", "db2", "db4", "bior2.2", "sym4")
SECRETS = (b"/home", b"/usr", b"/work", b"/tmp", b"site-packages", b".py", b"wdm_export")


@pytest.fixture(scope="module")
def network():
    return random_network()


def labelled(model, role):
    graphs.label(model, role)
    return model


@pytest.fixture(scope="module")
def models(network):
    exported = {fp16: score_graph_once(network, TILE, fp16) for fp16 in (False, True)}
    return {fp16: labelled(model, "score") for fp16, model in exported.items()}


def session(model):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    data = model.SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def engine(model):
    data = model.SerializeToString()
    return open_engine(
        data,
        graphs.graph_entry(model, "graph.onnx", data),
        "ort-cpu",
        options=EngineOptions(threads=1),
    )


def compared(network, model, fp16=False):
    data = model.SerializeToString()
    return parity.compare_score(network, data, graphs.graph_entry(model, "score.onnx", data), fp16)


# --- the score network ---------------------------------------------------------------------------


@PRECISIONS
def test_form_is_what_engines_were_promised(models, fp16):
    model = models[fp16]
    parity.check_form("score", model, INPUTS)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]
    assert model.ir_version <= 10 and not model.functions
    (output,) = graphs.tensor_specs(model.graph.output)
    assert output == TensorSpec("v", "float32", TILE_SPEC)
    ops = {node.op_type for node in model.graph.node}
    assert not ops & {"GroupNormalization", "Attention", "RandomNormal", "RandomNormalLike"}


@PRECISIONS
def test_everything_is_in_one_file(models, fp16):
    for tensor in models[fp16].graph.initializer:
        assert tensor.data_location == TensorProto.DEFAULT and not tensor.external_data


@PRECISIONS
def test_weights_are_stored_in_fp16_without_loss(models, network, fp16):
    stored = {t.name.removeprefix("network."): t for t in models[fp16].graph.initializer}
    parameters = dict(network.named_parameters())
    for kind in ("weight", "bias"):  # the blocks' layers for the time are one
        names = [n for n in parameters if n.endswith(f".time.{kind}")]
        blocks = [getattr(block.time, kind) for block in network.residual_blocks()]
        assert len(names) == len(blocks) == 8
        parameters[f"terms.{kind}"] = torch.cat(blocks)
        for name in names:
            del parameters[name]
    for name, value in parameters.items():
        if name.startswith("time.") and fp16:
            continue  # the time embedding computes in fp32 there
        if value.numel() < 16 or "norm" in name:
            continue  # a cast would cost more than it saves; norms are folded
        tensor = stored[name if fp16 else f"{name}_fp16"]
        assert tensor.data_type == TensorProto.FLOAT16
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), value.detach().half().numpy())
    wide = sum(
        int(np.prod(t.dims)) for n, t in stored.items()
        if t.data_type == TensorProto.FLOAT and not n.startswith("time.") and len(t.dims) > 1
        and int(np.prod(t.dims)) >= 16
    )  # fmt: skip
    assert wide == 0


@PRECISIONS
def test_no_trace_of_the_machine_that_exported(models, fp16):
    bare = onnx.ModelProto()
    bare.CopyFrom(models[fp16])
    for tensor in bare.graph.initializer:  # random weights may spell anything
        tensor.raw_data = b""
    text = bare.SerializeToString().lower()
    assert b"wdm_score" in text
    found = [secret for secret in SECRETS if secret in text]
    assert not found
    assert not bare.doc_string and not bare.graph.metadata_props
    assert not any(node.metadata_props or node.doc_string for node in bare.graph.node)


@PRECISIONS
@torch.inference_mode()
def test_any_batch_gives_what_torch_gives(models, network, fp16):
    run = session(models[fp16]).run
    rng = np.random.default_rng(0)
    for batch in (1, 2, 5):
        x, condition = rng.standard_normal((2, batch, 16, SIZE, SIZE), dtype=np.float32)
        for t in (0.0, 0.3, 0.7, 1.0):
            feeds = {"x": x, "condition": condition, "t": np.array([t], np.float32)}
            (v,) = run(["v"], feeds)
            expected = network(*map(torch.from_numpy, feeds.values())).numpy()
            limit = 5e-3 * np.abs(expected).max() if fp16 else 1e-5
            assert v.dtype == np.float32 and v.shape == x.shape
            np.testing.assert_allclose(v, expected, atol=limit, rtol=0)


@PRECISIONS
def test_the_graph_is_pure_and_hears_every_input(models, fp16):
    run = session(models[fp16]).run
    rng = np.random.default_rng(0)
    x, condition = rng.standard_normal((2, 1, 16, SIZE, SIZE), dtype=np.float32)
    feeds = {"x": x, "condition": condition, "t": np.array([0.5], np.float32)}
    (v,) = run(None, feeds)
    np.testing.assert_array_equal(run(None, feeds)[0], v)
    for name in feeds:
        (other,) = run(None, {**feeds, name: feeds[name] + np.float32(0.25)})
        assert np.abs(other - v).max() > 1e-2, f"{name} changes nothing"


def test_the_time_embedding_stays_in_fp32():
    # Rounded to fp16, frequencies of 1000 t shift the sinusoids by a fifth of a radian.
    network = random_network(
        NetworkConfig(base_channels=32, multipliers=(1,), blocks=1, head_channels=32)
    )
    t = torch.linspace(0, 1, 101)
    with torch.inference_mode():
        expected = network.time(t)
        embed = GpuForm(network).network.time
        got = torch.cat([embed(t[i : i + 1]) for i in range(len(t))])
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert all(p.dtype == torch.float32 for p in network.parameters()), "the original was changed"


@pytest.mark.parametrize("levels", [0, 1])
def test_wdm1_and_the_pixel_model_export_too(levels):
    network = random_network(small(levels, multipliers=(1,), attention=False))
    model = labelled(score_graph_once(network, 16, False), "score")
    tile = ("batch", 4**levels, 16 // 2**levels, 16 // 2**levels)
    expected = (*(replace(spec, shape=tile) for spec in INPUTS[:2]), INPUTS[2])
    parity.check_form("score", model, expected)
    assert compared(network, model).passed


def test_exporting_is_silent(capfd, caplog):
    network = random_network(small(multipliers=(1,), attention=False), seed=7)
    with caplog.at_level(logging.INFO):
        graphs.score_graph(network, 16, False)
    out, err = capfd.readouterr()
    assert out == "" and err == ""


# --- the gate ------------------------------------------------------------------------------------


@PRECISIONS
def test_a_faithful_graph_passes(models, network, fp16):
    result = compared(network, models[fp16], fp16)
    assert result.passed and 0 <= result.difference < result.limit / 10
    parity.require_all([result])


@PRECISIONS
@pytest.mark.parametrize("name", ["head.bias", "stem.weight", "time.layers.2.bias"])
def test_weights_changed_after_the_export_fail(models, fp16, name):
    other = random_network()
    with torch.no_grad():
        other.get_parameter(name).view(-1)[0] += 1.0
    result = compared(other, models[fp16], fp16)
    assert not result.passed and np.isfinite(result.difference)
    with pytest.raises(ParityError, match="score fp") as caught:
        parity.require_all([parity.Comparison("fine", 0.0, 1.0), result])
    assert caught.value.exit_code == 5 and "1 of 2" in str(caught.value)


def test_nan_fails_wherever_it_comes_from(models, network):
    assert not parity.Comparison("nothing", float("nan"), 1e30).passed
    with pytest.raises(ParityError, match="nothing"):
        parity.require_all([parity.Comparison("nothing", float("nan"), 1e30)])
    broken = random_network()
    with torch.no_grad():
        broken.head.bias[3] = float("nan")
    assert not compared(broken, models[False]).passed
    model = onnx.ModelProto()
    model.CopyFrom(models[False])
    (tensor,) = [t for t in model.graph.initializer if "head.bias" in t.name]
    values = numpy_helper.to_array(tensor).copy()
    values[3] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    assert not compared(network, model).passed


def _opset(model):
    model.opset_import[0].version = 19


def _foreign_domain(model):
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))


def _forbidden(model):
    model.graph.node.append(
        onnx.helper.make_node("RandomNormal", [], ["noise"], shape=[1], dtype=1)
    )


def _fixed_batch(model):
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def _other_name(model):
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name == "t":
                node.input[i] = "time"
    model.graph.input[2].name = "time"


def _other_role(model):
    graphs.label(model, "dwt")


def _other_type(model):
    model.graph.input[2].type.tensor_type.elem_type = TensorProto.INT32
    cast = onnx.helper.make_node("Cast", ["t"], ["t as float"], to=TensorProto.FLOAT)
    for node in model.graph.node:
        node.input[:] = ["t as float" if name == "t" else name for name in node.input]
    model.graph.node.insert(0, cast)


def _unknown_value(model):
    model.graph.node[0].input[0] = "nowhere"


@pytest.mark.parametrize(
    "damage",
    [
        _opset,
        _foreign_domain,
        _forbidden,
        _fixed_batch,
        _other_name,
        _other_role,
        _other_type,
        _unknown_value,
    ],
)
def test_a_graph_of_another_form_is_refused(models, damage):
    model = onnx.ModelProto()
    model.CopyFrom(models[False])
    parity.check_form("score", model, INPUTS)
    damage(model)
    with pytest.raises(ParityError, match="'score'"):
        parity.check_form("score", model, INPUTS)


# --- wavelet transforms --------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("name", WAVELETS)
def test_transform_graphs_pass_the_gate(name, levels):
    spec = named_wavelet(name, levels)
    forward, inverse = graphs.dwt_graph(spec), graphs.idwt_graph(spec)
    for role, model in (("dwt", forward), ("idwt", inverse)):
        parity.check_form(role, labelled(model, role), graphs.tensor_specs(model.graph.input))
        check_graph(model.SerializeToString(), role)
        taps = len(spec.bank) ** 2
        assert len(model.SerializeToString()) < 5000 * max(1, 4 ** (levels - 2)) * taps / 4
        assert not any(secret in model.SerializeToString() for secret in SECRETS)
    results = parity.compare_wavelets(spec, engine(forward), engine(inverse))
    assert len(results) == 6
    parity.require_all(results)


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("size", [(4, 4), (4, 36), (120, 76)])
@pytest.mark.parametrize("name", ["haar", "db2", "bior2.2"])
def test_transform_graphs_take_any_size(name, levels, size):
    spec = named_wavelet(name, levels)
    field = np.random.default_rng(0).standard_normal((1, 1, *size), dtype=np.float32)
    (coeffs,) = session(graphs.dwt_graph(spec)).run(None, {"field": field})
    assert coeffs.shape == (1, spec.subbands, size[0] // spec.stride, size[1] // spec.stride)
    np.testing.assert_allclose(coeffs[0], wavelets.dwt(field[0], spec), atol=2e-6)
    (back,) = session(graphs.idwt_graph(spec)).run(None, {"coeffs": coeffs})
    np.testing.assert_allclose(back, field, atol=2e-6)


@pytest.mark.parametrize("name", WAVELETS)
def test_transform_graphs_take_the_fewest_coefficients_a_tile_may_have(name):
    spec = named_wavelet(name, 2)
    edge = spec.least_coeffs * spec.stride
    field = np.random.default_rng(0).standard_normal((1, 1, edge, edge + 4), dtype=np.float32)
    (coeffs,) = session(graphs.dwt_graph(spec)).run(None, {"field": field})
    np.testing.assert_allclose(coeffs[0], wavelets.dwt(field[0], spec), atol=3e-6)
    (back,) = session(graphs.idwt_graph(spec)).run(None, {"coeffs": coeffs})
    np.testing.assert_allclose(back, field, atol=3e-6)


def test_haars_graphs_are_those_of_the_bundles_written_before_there_were_others():
    for role, make in (("dwt", graphs.dwt_graph), ("idwt", graphs.idwt_graph)):
        data = labelled(make(WaveletSpec(levels=2)), role).SerializeToString()
        for bundle in ("tiny", "wdm2-mrms"):
            assert data == (MODELS / bundle / f"{role}.onnx").read_bytes()


@pytest.mark.parametrize("name", ["haar", "db2"])
def test_transform_graphs_with_wrong_kernels_fail(name):
    spec = named_wavelet(name, 2)
    forward, inverse = graphs.dwt_graph(spec), graphs.idwt_graph(spec)
    kernel = next(t for t in forward.graph.initializer if t.name == "kernel0")
    values = numpy_helper.to_array(kernel).copy()
    for changed in (values[[0, 2, 1, 3]], values * [[[[1]]], [[[-1]]], [[[1]]], [[[1]]]]):
        kernel.CopyFrom(numpy_helper.from_array(changed.astype(np.float32), kernel.name))
        results = parity.compare_wavelets(spec, engine(forward), engine(inverse))
        with pytest.raises(ParityError, match="DWT graph against NumPy"):
            parity.require_all(results)
    shorter = graphs.idwt_graph(spec)
    kernel = next(t for t in shorter.graph.initializer if t.name == "kernel1")
    values = numpy_helper.to_array(kernel) * np.float32(1.001)
    kernel.CopyFrom(numpy_helper.from_array(values, kernel.name))
    results = parity.compare_wavelets(spec, engine(graphs.dwt_graph(spec)), engine(shorter))
    with pytest.raises(ParityError, match="round trip"):
        parity.require_all(results)


class Poisoned:
    """An engine one value of which is NaN."""

    def __init__(self, inner):
        self.inner = inner

    def run(self, feeds):
        values = self.inner.run(feeds).copy()
        values.flat[-1] = np.nan
        return values


@pytest.mark.parametrize("which", ["dwt", "idwt"])
def test_a_nan_in_a_transform_fails(which):
    spec = WaveletSpec(levels=1)
    engines = {"dwt": engine(graphs.dwt_graph(spec)), "idwt": engine(graphs.idwt_graph(spec))}
    engines[which] = Poisoned(engines[which])
    with pytest.raises(ParityError):
        parity.require_all(parity.compare_wavelets(spec, **engines))
