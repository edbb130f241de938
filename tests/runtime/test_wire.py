"""What the reading process says is believed in nothing: a file may have taken it over."""

import io
import json

import lying_worker
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from netcdf_files import RAIN, rain_file

from wdm_runtime.errors import InputError
from wdm_runtime.io import read_field, reader
from wdm_runtime.io.field_wire import describe, described
from wdm_runtime.io.reader import ReaderProcess
from wdm_runtime.io.wire import MOST_HEAD_BYTES, Message, WireError, decode, encode

ARRAYS = (np.arange(6, dtype=">f4").reshape(2, 3), np.array(7, "i8"), np.zeros((0, 4), np.uint8))
LIMIT = 1 << 16


def joined(message):
    return b"".join(encode(message.head, message.arrays))


def heard(data, most_bytes=LIMIT):
    """Decode bytes; EOFError where they end too soon."""
    stream = io.BytesIO(data)

    def read_into(buffer):
        if stream.readinto(buffer) < len(buffer):
            raise EOFError

    return decode(read_into, most_bytes)


def said(head):
    text = json.dumps(head).encode()
    return len(text).to_bytes(4, "little") + text


def test_a_message_comes_back():
    found = heard(joined(Message({"is": "answer", "text": "größer"}, ARRAYS)))
    assert found.head == {"is": "answer", "text": "größer"}
    for got, sent in zip(found.arrays, ARRAYS, strict=True):
        assert got.shape == sent.shape and got.dtype == sent.dtype.newbyteorder("<")
        np.testing.assert_array_equal(got, sent)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ((MOST_HEAD_BYTES + 1).to_bytes(4, "little"), "a head of"),
        ((3).to_bytes(4, "little") + b"\xff{}", "no JSON"),
        (said([]), "no object"),
        ((200_000).to_bytes(4, "little") + b"[" * 200_000, "no JSON"),
        (said({}), "no list of arrays"),
        (said({"arrays": {"<f4": [1]}}), "no list of arrays"),
        (said({"arrays": [["|b1", [0]]] * 10_001}), "no list of arrays"),
        (said({"arrays": [["|O", [1]]]}), "described as"),
        (said({"arrays": [["<f4", [1], "order"]]}), "described as"),
        (said({"arrays": [["<f4", 3]]}), "described as"),
        (said({"arrays": [["<f4", [-1]]]}), "described as"),
        (said({"arrays": [["<f4", [True]]]}), "described as"),
        (said({"arrays": [["<f4", [1, 1, 1, 1]]]}), "described as"),
        (said({"arrays": [["<f8", [1 << 13, 2]]]}), "more than 65536 bytes"),
        (said({"arrays": [["<f4", [1 << 39, 0]]]}), "more than 65536 bytes"),
    ],
)
def test_what_is_no_message_is_refused_before_room_is_made_for_it(data, words):
    with pytest.raises(WireError, match=words):
        heard(data)


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_a_changed_byte_gives_a_message_or_is_refused(place, change):
    data = bytearray(joined(Message({"is": "answer", "text": "rain"}, ARRAYS)))
    data[place % len(data)] ^= change
    try:
        found = heard(bytes(data))
    except (WireError, EOFError):
        return
    assert isinstance(found.head, dict) and sum(a.nbytes for a in found.arrays) <= LIMIT


def places(value, path=()):
    """Ways to all that lies in nested lists and objects."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*path, key)
        if isinstance(inner, (dict, list)):
            yield from places(inner, (*path, key))


@pytest.fixture(scope="module")
def description(tmp_path_factory):
    field = read_field(rain_file(tmp_path_factory.mktemp("wire") / "in.nc"), isolate=False)
    message = describe(field)
    return json.dumps(message.head), message.arrays


def test_a_description_comes_back(description):
    text, arrays = description
    found = described("in.nc", Message(json.loads(text), arrays))
    assert found.shape == RAIN.shape and found.source.variable == "rain"


JUNK = st.sampled_from(
    [None, True, -1, 1e400, "", [], {}, {"array": 99}, {"array": -1}, {"array": "0"}, [[]], 1 << 70]
)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), junk=JUNK)
def test_a_changed_description_gives_a_field_or_is_refused(description, data, junk):
    text, arrays = description
    head = json.loads(text)
    *way, last = data.draw(st.sampled_from(list(places(head))))
    inner = head
    for key in way:
        inner = inner[key]
    inner[last] = junk
    try:
        found = described("in.nc", Message(head, arrays))
    except (WireError, InputError):
        return
    rows, columns = found.shape[1:]
    assert found.shape[0] > 0 and found.grid.y.shape == (rows,) and found.grid.x.shape == (columns,)
    assert np.isfinite(found.grid.y).all() and np.isfinite(found.grid.x).all()


LIES = [*lying_worker.FRAMES, *lying_worker.HEADS, *lying_worker.BYTES]


@pytest.mark.parametrize("lie", LIES)
def test_a_reading_process_that_lies_is_ended_and_nothing_of_it_used(lie, tmp_path, monkeypatch):
    path = rain_file(tmp_path / "in.nc")
    with ReaderProcess() as one:
        with monkeypatch.context() as patch:
            patch.setattr(reader, "_WORKER", "lying_worker")
            patch.setenv(lying_worker.VARIABLE, lie)
            found = one.read_field(path)
            with pytest.raises(InputError, match=r"in\.nc: reading it told of "):
                found.frame(0)
        assert one.pid is None
        np.testing.assert_array_equal(found.load(), RAIN)  # by an honest one
