"""The bundles' graphs stay within what the oldest TensorRT 10, that of JetPack 6, can parse."""

import pytest
from conftest import MODELS
from filter_banks import BANKS, spec_of

onnx = pytest.importorskip("onnx", reason="onnx is not installed (export)")

OPSET = 20  # TensorRT 10.3 parses opsets 9 to 20
# Each is in the table of operators of TensorRT 10.3's parser.
ALLOWED = {
    *("Add", "Cast", "Concat", "Conv", "ConvTranspose", "Cos", "Div", "Gemm", "Identity"),
    *("InstanceNormalization", "MatMul", "Mul", "ReduceMean", "ReduceSum", "Reshape", "Resize"),
    *("Relu", "Shape", "Sigmoid", "Sin", "Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub"),
    *("Transpose", "Unsqueeze"),
}
REFUSED = {"GroupNormalization", "Attention", "Swish", "DFT", "RandomNormal", "RandomNormalLike"}


@pytest.mark.parametrize(
    "path",
    sorted(p for kind in ("score", "pixel") for p in MODELS.glob(f"*/{kind}*.onnx")),
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)
def test_graphs_parse_with_the_oldest_tensorrt(path):
    model = onnx.load(path)
    assert [(entry.domain, entry.version <= OPSET) for entry in model.opset_import] == [("", True)]
    assert not model.functions
    assert {node.op_type for node in model.graph.node} <= ALLOWED - REFUSED
    tensors = (*model.graph.input, *model.graph.output)
    assert {t.type.tensor_type.elem_type for t in tensors} == {onnx.TensorProto.FLOAT}
    for tensor in tensors:  # a plan has fixed sizes but for the batch
        assert all(size.dim_value > 0 for size in tensor.type.tensor_type.shape.dim[1:]), (
            tensor.name
        )
    if path.stem.endswith("fp16"):
        weights = [t for t in model.graph.initializer if len(t.dims) == 4]
        assert weights and all(t.data_type == onnx.TensorProto.FLOAT16 for t in weights)


@pytest.mark.parametrize("name", ["haar", *BANKS])
def test_transforms_of_any_filter_bank_parse_with_the_oldest_tensorrt(name):
    pytest.importorskip("torch", reason="torch is not installed (export)")
    from wdm_export import graphs

    for make in (graphs.dwt_graph, graphs.idwt_graph):
        model = make(spec_of(name))
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
        assert {node.op_type for node in model.graph.node} <= ALLOWED - REFUSED
