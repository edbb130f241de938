"""Run a network that TensorRT's own parser made of a graph, layer by layer in NumPy.

This needs no GPU. It tests what the parser understood, not the kernels that a GPU would run. Each
result's shape and data type has to be the one TensorRT gave the tensor.
"""

from __future__ import annotations

from collections import deque

import numpy as np

_DTYPES = {"FLOAT": "f4", "HALF": "f2", "INT32": "i4", "INT64": "i8", "BOOL": "?"}
_BINARY = {"SUM": np.add, "PROD": np.multiply, "SUB": np.subtract, "POW": np.power}
_BINARY |= {"DIV": np.divide, "FLOOR_DIV": np.floor_divide, "MAX": np.maximum, "MIN": np.minimum}
_BINARY |= {"EQUAL": np.equal, "LESS": np.less, "GREATER": np.greater}
_UNARY = {"SIN": np.sin, "COS": np.cos, "EXP": np.exp, "NEG": np.negative, "SQRT": np.sqrt}
_UNARY |= {"RECIP": np.reciprocal, "ABS": np.abs}
_ACTIVATIONS = {"SIGMOID": lambda x: 1 / (1 + np.exp(-x)), "RELU": lambda x: np.maximum(x, 0)}


def dtype_of(tensor):
    return np.dtype(_DTYPES[tensor.dtype.name])


def evaluate(trt, network, feeds):
    """The network's outputs by name for the inputs by name."""
    values = dict(feeds)
    layers = deque(network.get_layer(i) for i in range(network.num_layers))
    waited = 0
    while layers:  # they are not always in the order of their needs
        layer = layers.popleft()
        tensors = [layer.get_input(i) for i in range(layer.num_inputs)]
        if any(tensor is not None and tensor.name not in values for tensor in tensors):
            layers.append(layer)
            waited += 1
            assert waited <= len(layers), "a layer waits for a tensor that none makes"
            continue
        waited = 0
        kind, target = layer.type.name, layer.get_output(0)
        inputs = [None if tensor is None else values[tensor.name] for tensor in tensors]
        result = np.asarray(compute(trt, layer, kind, inputs)).astype(dtype_of(target))
        assert result.shape == tuple(target.shape), (kind, layer.name, result.shape, target.shape)
        values[target.name] = result
    outputs = [network.get_output(i).name for i in range(network.num_outputs)]
    return {name: values[name] for name in outputs}


def compute(trt, layer, kind, inputs):
    """One layer; sums in fp32, as TensorRT's kernels of half precision."""
    name = {"ELEMENTWISE": "ElementWise", "SOFTMAX": "SoftMax"}.get(kind, kind.title())
    layer.__class__ = getattr(trt, f"I{name.replace('_', '')}Layer")  # shows its parameters
    x = inputs[0] if inputs else None
    match kind:
        case "CONSTANT":
            return np.array(layer.weights).reshape(tuple(layer.shape))
        case "SHAPE":
            return np.array(x.shape)
        case "CAST":
            return x
        case "ELEMENTWISE":
            return _BINARY[layer.op.name](*inputs)
        case "UNARY":
            return _UNARY[layer.op.name](x)
        case "ACTIVATION":
            return _ACTIVATIONS[layer.type.name](x.astype("f4"))
        case "CONCATENATION":
            return np.concatenate(inputs, axis=layer.axis)
        case "SQUEEZE":
            return np.squeeze(x, tuple(inputs[1].ravel()))
        case "UNSQUEEZE":
            return np.expand_dims(x, tuple(inputs[1].ravel()))
        case "SOFTMAX":
            (axis,) = bits(layer.axes)
            powers = np.exp(x.astype("f4") - x.max(axis, keepdims=True))
            return powers / powers.sum(axis, keepdims=True)
        case "MATRIX_MULTIPLY":
            flips = (layer.op0, layer.op1)
            a, b = (
                value.astype("f4").swapaxes(-1, -2)
                if flip.name == "TRANSPOSE"
                else value.astype("f4")
                for value, flip in zip(inputs, flips, strict=True)
            )
            return a @ b
        case "SHUFFLE":
            return shuffle(layer, inputs)
        case "SLICE":
            return x[slices(layer, inputs)]
        case "RESIZE":
            return resize(layer, inputs)
        case "NORMALIZATION":
            return normalize(layer, *(value.astype("f4") for value in inputs))
        case "REDUCE":
            total = {"AVG": np.mean, "SUM": np.sum}[layer.op.name]
            return total(x.astype("f4"), bits(layer.axes), keepdims=layer.keep_dims)
        case "GATHER":
            assert layer.mode.name == "DEFAULT" and layer.num_elementwise_dims == 0
            return np.take(x, inputs[1], layer.axis)
        case "CONVOLUTION":
            return convolve(layer, inputs)
        case "DECONVOLUTION":
            return deconvolve(layer, inputs)
    raise NotImplementedError(kind)


def bits(mask):
    return tuple(axis for axis in range(8) if mask >> axis & 1)


def shuffle(layer, inputs):
    x = inputs[0].transpose(tuple(layer.first_transpose)[: inputs[0].ndim])
    shape = inputs[1].ravel() if len(inputs) > 1 else layer.reshape_dims
    if shape is not None and (len(shape) or x.size == 1):  # else it only transposes
        if layer.zero_is_placeholder:
            shape = [x.shape[axis] if size == 0 else size for axis, size in enumerate(shape)]
        x = x.reshape([int(size) for size in shape])
    return x.transpose(tuple(layer.second_transpose)[: x.ndim])


def slices(layer, inputs):
    given = dict(
        enumerate(inputs)
    )  # what a graph computes comes as inputs, the rest is the layer's
    start, size, stride = (
        np.ravel(own if given.get(i) is None else given[i])
        for i, own in ((1, layer.start), (2, layer.shape), (3, layer.stride))
    )
    axes = range(inputs[0].ndim) if layer.axes is None else tuple(layer.axes)
    taken = [slice(None)] * inputs[0].ndim
    for axis, first, count, step in zip(axes, start, size, stride, strict=True):
        taken[axis] = slice(first, first + count * step, step)
    return tuple(taken)


def resize(layer, inputs):
    assert layer.resize_mode.name == "NEAREST"
    x = inputs[0]
    for axis, size in enumerate(layer.get_output(0).shape):
        factor, rest = divmod(size, x.shape[axis])
        assert rest == 0
        x = x.repeat(factor, axis)
    return x


def normalize(layer, x, scale, bias):
    shape, axes = x.shape, bits(layer.axes)
    if layer.num_groups > 1:
        x, axes = x.reshape(shape[0], layer.num_groups, -1), (2,)
    mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    return ((x - mean) / np.sqrt(variance + layer.epsilon)).reshape(shape) * scale + bias


def convolve(layer, inputs):
    """Strided convolution by a product of matrices, group after group."""
    x, kernel, bias = (*inputs, None, None)[:3]
    groups = layer.num_groups
    assert tuple(layer.dilation_nd) == (1, 1)
    if kernel is None:
        size = (layer.num_output_maps, x.shape[1] // groups, *layer.kernel_size_nd)
        kernel = np.array(layer.kernel).reshape(size)
    if bias is None:
        bias = np.array(layer.bias)
    edges = zip(
        layer.pre_padding, layer.post_padding, strict=True
    )  # above and left, below and right
    padded = np.pad(x, ((0, 0), (0, 0), *edges)).astype("f4")
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[2:], (2, 3))
    windows = windows[:, :, :: layer.stride_nd[0], :: layer.stride_nd[1]]
    parts = zip(np.split(windows, groups, axis=1), np.split(kernel, groups), strict=True)
    result = np.concatenate(
        [np.tensordot(part, own.astype("f4"), axes=((1, 4, 5), (1, 2, 3))) for part, own in parts],
        axis=3,
    )
    return (result + bias.astype("f4") if bias.size else result).transpose(0, 3, 1, 2)


def deconvolve(layer, inputs):
    """Each value spreads its group's kernel over the result; the layer's padding is cut off."""
    groups, stride, size = layer.num_groups, tuple(layer.stride_nd), tuple(layer.kernel_size_nd)
    assert tuple(layer.dilation_nd) == (1, 1)
    x, kernel, bias = (*inputs, None, None)[:3]
    if kernel is None:
        kernel = np.array(layer.kernel).reshape(x.shape[1], layer.num_output_maps // groups, *size)
    if bias is None:
        bias = np.array(layer.bias)
    height, width = (s * (n - 1) + k for s, n, k in zip(stride, x.shape[2:], size, strict=True))
    parts = zip(np.split(x, groups, axis=1), np.split(kernel, groups), strict=True)
    out = np.zeros((len(x), layer.num_output_maps, height, width), "f4")
    targets = np.split(out, groups, axis=1)
    for target, (part, own) in zip(targets, parts, strict=True):
        for row, column in np.ndindex(size):
            rows = slice(row, row + stride[0] * x.shape[2], stride[0])
            columns = slice(column, column + stride[1] * x.shape[3], stride[1])
            target[:, :, rows, columns] += np.einsum("bcyx,co->boyx", part, own[:, :, row, column])
    (top, left), (bottom, right) = layer.pre_padding, layer.post_padding
    out = out[:, :, top : height - bottom, left : width - right]
    return out + bias.reshape(-1, 1, 1) if bias.size else out
