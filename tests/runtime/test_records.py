"""Records read from JSON: what is taken for which annotated type."""

from dataclasses import dataclass

import pytest

from wdm_runtime.records import build


@dataclass
class _Part:
    name: str


@dataclass
class _Whole:
    scale: float | None
    name: int | str
    part: _Part | None


def _built(scale=1.0, name="a", part=None):
    part = {"name": "b"} if part is None else part
    return build(_Whole, {"scale": scale, "name": name, "part": part}, "")


def test_a_whole_number_is_an_optional_float_too():
    """JSON writes 1.0 as it likes, and a `Preset` takes the noise scale 1."""
    found = _built(scale=2).scale
    assert found == 2 and type(found) is float
    assert _built(scale=None).scale is None


def test_other_unions_take_only_what_they_name():
    assert _built(name=3).name == 3 and type(_built(name=3).name) is int
    for wrong in ({"name": 1.0}, {"name": True}, {"name": None}, {"scale": True}, {"scale": "1"}):
        with pytest.raises(ValueError, match="expected"):
            _built(**wrong)


def test_an_optional_record_may_be_null_and_nothing_else_but_a_record():
    assert build(_Whole, {"scale": None, "name": 1, "part": None}, "").part is None
    for wrong in ([], "b", 0, False):
        with pytest.raises(ValueError, match=r"part is \w+, expected an object"):
            _built(part=wrong)
