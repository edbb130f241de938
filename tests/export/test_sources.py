"""Where patches come from: storm days, and what a bundle tells of very many fields."""

import hashlib
import json
from dataclasses import asdict
from datetime import datetime, timedelta

import pytest
from conftest import edit_manifest

pytest.importorskip("torch")

from wdm_export.card import model_card
from wdm_export.sources import MOST_LISTED, Source, listed, told, without
from wdm_runtime.bundle import Bundle


def fields(count, minutes=5):
    """A file every few minutes, as a radar gives them."""
    start = datetime(2021, 1, 1)
    return [
        asdict(
            Source(
                f"radar_{index:06d}.nc",
                hashlib.sha256(str(index).encode()).hexdigest(),
                (start + timedelta(minutes=minutes * index)).isoformat(),
                3 * index,
                3,
            )
        )
        for index in range(count)
    ]


def test_fields_without_a_time_are_of_the_storm_of_their_file():
    frames = [Source("a.nc", "0", f"none-{index}", index, 1) for index in range(3)]
    assert {frame.storm_day for frame in frames} == {"a.nc"}
    assert Source("a.nc", "0", "2021-01-01T00:05:00", 0, 1).storm_day == "2021-01-01"


def test_few_fields_have_a_line_each():
    few = fields(MOST_LISTED)
    assert listed(few) == few


def test_years_of_radar_fit_into_a_manifest(tiny_copy):
    many = fields(2 * 365 * 288)
    lines = listed(many)
    assert [line["valid_time"][:10] for line in lines[:2]] == ["2021-01-01", "2021-01-02"]
    assert len(lines) == 2 * 365
    assert all((line["fields"], line["count"]) == (288, 864) for line in lines)
    assert lines[0]["file"] == "288 files"
    text = "".join(f"{field['sha256']}  {field['file']}\n" for field in many[:288])
    assert lines[0]["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    training = Bundle.open(tiny_copy).manifest.training
    edit_manifest(tiny_copy, training={**training, "sources": lines})
    card = model_card(Bundle.open(tiny_copy).manifest)
    assert "210240 fields of 730 storm days: 2021-01-01 to 2022-12-31" in card
    assert len(json.dumps(lines)) < 1 << 20


def test_sources_that_were_had_before_are_found_in_any_number():
    many = fields(40_000)
    assert without(many, many[:39_999]) == many[39_999:]  # a comparison of each pair takes minutes


def test_the_card_tells_of_patches_of_means(tiny_copy):
    training = Bundle.open(tiny_copy).manifest.training
    sources = [*(source | {"augment_scale": 2} for source in fields(3)), fields(4)[3]]
    edit_manifest(tiny_copy, training={**training, "sources": sources})
    card = model_card(Bundle.open(tiny_copy).manifest)
    assert "4 fields of 1 storm days, of 3 also their means of 2 x 2 cells: " in card


def test_sources_of_other_makers_may_say_nothing():
    ours = fields(2)
    assert told([*ours, "a file", {"file": "x"}, None]) == ours
    assert told(None) == told({}) == []
