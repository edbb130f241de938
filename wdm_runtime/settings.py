"""Everything a user chooses that decides an output's values, and its form as file attributes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from wdm_runtime.errors import InputError

_PREFIX = "wdm_"
_KINDS = {"int": int, "float": float, "str": str}


@dataclass(frozen=True)
class Settings:
    """One run's choices; None asks the bundle or the code for its default.

    Names are those of the options of ``wdm-run infer``; texts are what the user typed there.
    """

    members: int = 1
    seed: int = 0
    steps: int | None = None
    sampler: str | None = None
    noise_scale: float | None = None
    time_grid: str | None = None
    preset: str | None = None
    consistency: str | None = None
    noise_decorrelation_min: float = 0.0
    variable: str | None = None
    accumulation: str | None = None
    time: str | None = None
    bbox: str | None = None
    assume_factor: bool = False
    units: str | None = None
    stats: str = "none"
    quantiles: str | None = None
    thresholds: str | None = None
    on_suspect: str | None = None

    def attributes(self) -> dict[str, Any]:
        """As global attributes of a file; what is None is left out."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {_PREFIX + name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> Settings:
        """The settings a file was made with.

        Raises
        ------
        InputError
            An attribute is missing or has another type.
        """
        values = {}
        for field in fields(cls):
            kind, _, optional = str(field.type).partition(" | ")
            found = attributes.get(_PREFIX + field.name)
            if found is None and optional:
                continue
            try:
                values[field.name] = _value(kind, found)
            except (TypeError, ValueError, KeyError) as error:
                raise InputError(
                    f"Attribute '{_PREFIX + field.name}' is {found!r}; expected {field.type}. Hand "
                    "in a file that this version of 'wdm-run infer' wrote."
                ) from error
        return cls(**values)


def _value(kind: str, found: Any) -> Any:
    if kind == "bool":
        return {"true": True, "false": False}[str(found).lower()]
    if found is None:
        raise ValueError("it is missing")
    return _KINDS[kind](found)
