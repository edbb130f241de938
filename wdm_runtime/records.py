"""Dataclasses and plain JSON values: read strictly, no key more or less, and written so."""

from __future__ import annotations

import json
import math
import reprlib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

OPTIONAL = {"optional": True}  # metadata of a field: records without it are older, not damaged


def build(kind: Any, value: Any, where: str) -> Any:
    """Plain JSON values to the annotated type, or a ValueError that says where it fails."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        record = next(filter(is_dataclass, arguments), None)
        if record is not None:
            return build(record, value, where)
        if float in arguments and type(value) is int and int not in arguments:
            return float(value)
        if not isinstance(value, tuple(arguments)) or isinstance(value, bool):
            raise ValueError(f"{where} is {reprlib.repr(value)}, expected {kind}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where} is {type(value).__name__}, expected a list")
        return tuple(build(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where} is {type(value).__name__}, expected an object")
        return {k: build(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    if is_dataclass(kind):
        return _record(kind, value, where)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"{where} is {reprlib.repr(value)}, expected {kind.__name__}")
    return value


def _record(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {type(value).__name__}, expected an object")
    optional = {f.name for f in fields(kind) if f.metadata == OPTIONAL} - set(value)
    names = [f.name for f in fields(kind) if f.name not in optional]
    missing, unknown = set(names) - set(value), set(value) - set(names)
    if missing or unknown:
        raise ValueError(f"{where}: missing keys {sorted(missing)}, unknown {shown(unknown)}")
    hints = typing.get_type_hints(kind)
    built = {n: build(hints[n], value[n], f"{where}.{n}" if where else n) for n in names}
    return kind(**built)


def to_json(values: Mapping[str, Any]) -> str:
    """`finite` values as the text of a JSON file."""
    return json.dumps(finite(values), indent=1, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """Nested values, with None for numbers that are not finite: JSON has none of these."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def shown(names: Iterable[str]) -> str:
    """Names in a message, which somebody else may have made long or many."""
    return reprlib.repr(sorted(names))
