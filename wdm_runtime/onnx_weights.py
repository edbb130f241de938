"""Weights that a graph shares with another graph of its bundle.

The fp32 graph stores its weights in fp16, as the fp16 graph does, so a bundle holds them once: the
fp16 graph names places in the file of the other, in ONNX's own way of external data. Any ONNX tool
reads both files from their folder. Engines here get graphs with all weights inside: a file that an
engine opens by itself may be another one than was checked.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable

from wdm_runtime.onnx_gate import GRAPH, MODEL, PROPERTY, TENSOR, refusals
from wdm_runtime.protobuf_wire import BYTES, Refused, read_message, table, write_message

_SHARED_TENSOR = {**TENSOR, **table(external_data=(13, BYTES, 3))}
_EXTERNAL = [1]  # data_location
_MOST_DIGITS = 10  # of an offset or a length

ReadFile = Callable[[str], bytes | None]


def with_weights(data: bytes, name: str, read: ReadFile) -> bytes:
    """A graph with those weights inside that it keeps in another file.

    Parameters
    ----------
    data
        A serialised ``ModelProto``; one whose weights are all inside is returned as it is.
    name
        What the message of an error calls it.
    read
        The bytes of a file that it may share weights with, by its name; none for any other.

    Raises
    ------
    BundleError
        A weight is in no such file or beyond its end, or the bytes are no graph.
    """
    with refusals(name):
        model = read_message(memoryview(data), MODEL, "model")
        graphs = [read_message(part, GRAPH, "graph") for part in model["graph"]]
        store = _Store(read)
        filled = [
            {**graph, "initializer": [store.filled(weight) for weight in graph["initializer"]]}
            for graph in graphs
        ]
        if not store.used:
            return data
        parts = [write_message(graph, GRAPH) for graph in filled]
        return write_message({**model, "graph": parts}, MODEL)


class _Store:
    """Files that weights are taken from; ``used`` counts the bytes, which files bound.

    Otherwise a small file whose tensors all name one large place would fill the memory.
    """

    def __init__(self, read: ReadFile) -> None:
        self._read = read
        self._files: dict[str, memoryview] = {}
        self.used = 0

    def filled(self, weight: memoryview) -> bytes | memoryview:
        """A serialised tensor with its values inside."""
        tensor = read_message(weight, _SHARED_TENSOR, "tensor")
        if tensor["data_location"] != _EXTERNAL:
            return weight
        if tensor["raw_data"]:
            raise Refused("a tensor has values inside and outside the file")
        values = self._values([_pair(entry) for entry in tensor["external_data"]])
        return write_message({**tensor, "raw_data": [values], "data_location": []}, TENSOR)

    def _values(self, place: list[tuple[bytes, bytes]]) -> memoryview:
        where = dict(place)
        if where.keys() != {b"location", b"offset", b"length"}:
            raise Refused(f"a tensor says of its place {reprlib.repr(sorted(where))}")
        file = where[b"location"].decode(errors="replace")
        offset, length = _whole(where[b"offset"]), _whole(where[b"length"])
        if file not in self._files:
            data = self._read(file)
            if data is None:
                raise Refused(f"a tensor keeps its values in {reprlib.repr(file)}, no other graph")
            self._files[file] = memoryview(data)
        self.used += length
        held = self._files[file]
        if offset + length > len(held) or self.used > sum(map(len, self._files.values())):
            raise Refused(f"tensors keep more values in '{file}' than its {len(held)} bytes")
        return held[offset : offset + length]


def _pair(entry: memoryview) -> tuple[bytes, bytes]:
    pair = read_message(entry, PROPERTY, "place of a tensor's values")
    return b"".join(pair["key"]), b"".join(pair["value"])


def _whole(text: bytes) -> int:
    if not text.isdigit() or len(text) > _MOST_DIGITS:
        raise Refused(f"a tensor's place has the number {reprlib.repr(text)}")
    return int(text)
