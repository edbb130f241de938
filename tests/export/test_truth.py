"""The truth of an evaluation: what is refused before the work, what is left out, what is said."""

import gzip
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")
xr = pytest.importorskip("xarray")

from small_training import rain  # noqa: E402
from test_data import write_netcdf  # noqa: E402

from wdm_export.truth import TruthFiles  # noqa: E402
from wdm_runtime.bundle import Bundle  # noqa: E402
from wdm_runtime.errors import InputError  # noqa: E402
from wdm_runtime.input_hash import hash_of  # noqa: E402

SHAPE = (40, 60)


@pytest.fixture
def manifest(tiny):
    return Bundle.open(tiny).manifest


@pytest.fixture
def two(tmp_path):
    names = {"one.nc": "2019-06-10T23:00", "two.nc": "2019-06-11T00:00"}
    return [
        write_netcdf(tmp_path / name, [rain(SHAPE, seed)], [time])
        for seed, (name, time) in enumerate(names.items())
    ]


def moved(source, target, **coordinates):
    """A copy with other coordinates; with times it is of other bytes anyhow."""
    with xr.open_dataset(source) as dataset:
        other = dataset.load().assign_attrs(title="a copy")
    for name, values in coordinates.items():
        other[name] = (name, values(other[name].values), other[name].attrs)
    other.to_netcdf(target)
    return target


def names(truths):
    return [file.path.name for file in truths.files]


def test_all_files_are_looked_at_before_the_first_is_read(manifest, two, tmp_path):
    (tmp_path / "junk.nc").write_bytes(b"no rain")
    wide = write_netcdf(tmp_path / "wide.nc", [rain(SHAPE)], ["2019-06-12"], step=0.03)
    for bad, says in ((tmp_path / "absent.nc", "no such file"), (wide, "expected 1 km")):
        with pytest.raises(InputError, match=says):
            TruthFiles([*two, bad], manifest)
    errors = []
    truths = TruthFiles([two[0], wide, tmp_path / "junk.nc", two[1]], manifest, None, None,
                        errors.append)  # fmt: skip
    assert ["wide.nc" in str(errors[0]), "junk.nc" in str(errors[1])] == [True, True]
    assert names(truths) == ["one.nc", "two.nc"]
    assert [field.source.path for field in truths] == [str(path) for path in two]


def test_a_file_that_is_gone_when_its_turn_comes(manifest, two):
    strict = TruthFiles(two, manifest)
    errors = []
    lax = TruthFiles(two, manifest, on_unreadable=errors.append)
    two[0].unlink()
    with pytest.raises(InputError, match="no such file"):
        list(strict)
    assert [field.source.path for field in lax] == [str(two[1])]
    assert len(errors) == 1 and names(lax) == ["two.nc"]
    two[1].unlink()
    with pytest.raises(InputError, match=r"None of the files.*two\.nc"):
        list(lax)


def test_nothing_is_scored_twice(manifest, two, tmp_path):
    copy = tmp_path / "copy.nc"
    copy.write_bytes(two[0].read_bytes())
    with pytest.raises(InputError, match=r"copy\.nc: has the same bytes as .*one\.nc; .* tiles"):
        TruthFiles([*two, copy], manifest)
    again = moved(two[0], tmp_path / "again.nc", lon=lambda lon: lon + 360)
    says = r"again\.nc: has the time 2019-06-10T23:00:00 on the same grid as .*one\.nc"
    with pytest.raises(InputError, match=says):
        TruthFiles([*two, again], manifest)
    errors = []
    assert names(TruthFiles([*two, again], manifest, on_unreadable=errors.append)) == [
        "one.nc",
        "two.nc",
    ]
    assert len(errors) == 1


def test_one_time_of_other_places_counts(manifest, two, tmp_path):
    east = moved(two[0], tmp_path / "east.nc", lon=lambda lon: lon + 1)
    with xr.open_dataset(two[0]) as dataset:  # neither says of when it is
        stills = [
            (k * dataset["precipitation_rate"].isel(time=0, drop=True)).assign_attrs(
                dataset["precipitation_rate"].attrs
            )
            for k in (1, 2)
        ]
    for number, still in enumerate(stills):
        still.to_netcdf(tmp_path / f"still{number}.nc")
    files = [*two, east, tmp_path / "still0.nc", tmp_path / "still1.nc"]
    assert len(TruthFiles(files, manifest).files) == 5


def test_two_radars_have_the_same_coordinates_about_themselves(manifest, tmp_path):
    files = []
    for number, latitude in enumerate((47.0, 51.0)):
        path = write_netcdf(
            tmp_path / f"r{number}.nc", [rain(SHAPE, number)], ["2019-06-10"], 40.0, 1.0, "km"
        )
        with xr.open_dataset(path) as dataset:
            radar = dataset.load()
        radar["crs"] = ((), 0, {
            "grid_mapping_name": "azimuthal_equidistant", "longitude_of_projection_origin": 8.0,
            "latitude_of_projection_origin": latitude,
        })  # fmt: skip
        radar["precipitation_rate"].attrs["grid_mapping"] = "crs"
        radar.to_netcdf(path)
        files.append(path)
    assert len(TruthFiles(files, manifest).files) == 2
    again = moved(files[0], tmp_path / "again.nc")
    with pytest.raises(InputError, match="on the same grid"):
        TruthFiles([*files, again], manifest)


def test_a_gzipped_file_beside_itself_is_refused(manifest, tmp_path, monkeypatch):
    pytest.importorskip("eccodes")
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "runtime")
    from grib2_messages import message

    files = [tmp_path / "x.grib2", tmp_path / "x.grib2.gz"]
    files[0].write_bytes(message())
    files[1].write_bytes(gzip.compress(message()))
    coarse = replace(manifest, domain=replace(manifest.domain, spacing_km=10.0))
    with pytest.raises(InputError, match=r"x\.grib2\.gz: has the time .* as .*x\.grib2;"):
        TruthFiles(files, coarse)


def test_what_limits_the_scores_is_said_once_a_kind(manifest, two, tmp_path):
    south = [
        write_netcdf(tmp_path / f"{name}.nc", [rain(SHAPE, 3)], [time], north=20.1)
        for name, time in (("a", "2019-06-12"), ("b", "2019-06-13"))
    ]
    # Of very many fields a bundle lists storm days.
    day = {"storm_day": "2019-06-11", "file": "9 files", "sha256": "f" * 64, "fields": 9}
    seen = {"file": "x.nc", "sha256": hash_of(two[0]), "valid_time": "2019-06-10T00:00:00"}
    trained = replace(manifest, training={**manifest.training, "sources": [day, seen]})
    truths = TruthFiles([*two, *south], trained, on_unreadable=[].append)
    assert truths.notes() == [
        "a.nc and 1 more: The field lies partly outside the latitudes the model was trained on: "
        "19.71 to 20.10 against 20 to 55 degrees.",
        "The bundle was trained on one.nc: its scores there flatter.",
        "The bundle was trained on fields of the same day as two.nc (2019-06-11): its scores on "
        "storms that it knows flatter.",
    ]
    two[0].unlink()
    list(truths)
    assert not any("one.nc" in note for note in truths.notes()), "it is not scored"
    assert TruthFiles(two[1:], replace(manifest, training={})).notes() == []


def test_finer_truth_is_told_how_to_be_averaged(manifest, tmp_path):
    finer = write_netcdf(tmp_path / "finer.nc", [rain(SHAPE)], ["2019-06-12"], step=0.005)
    says = r"expected 1 km .*wdm-export coarsen FINE -o fine\.nc --factor 2\)"
    with pytest.raises(InputError, match=says):
        TruthFiles([finer], manifest)
