"""`wdm-run` as a user meets it: the answer, and errors that lose nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import netCDF4
import numpy as np
import pytest
from conftest import SAMPLE, edit_manifest
from netcdf_files import add, coordinates

from wdm_runtime import Downscaler, sampling
from wdm_runtime.bundle import Bundle
from wdm_runtime.cache import cache_folder
from wdm_runtime.errors import InputError, MissingDependencyError, OutputError
from wdm_runtime.io import read_field


def rates(path):
    with netCDF4.Dataset(path) as data:
        return data["precipitation_rate"][:].filled(np.nan), data.__dict__


def test_infer_writes_an_ensemble_with_coordinates_and_provenance(infer, tmp_path, tiny):
    code, out, _ = infer("--members", 2, "--no-pixel-probe")
    assert code == 0 and "step latency" in out and "mrms_10km_1km.nc" in out
    values, attributes = rates(tmp_path / "mrms_10km_1km.nc")
    assert values.shape == (1, 2, 520, 760) and np.all(np.isfinite(values))
    assert attributes["wdm_bundle_sha256"] == Bundle.open(tiny).sha256
    assert attributes["wdm_seed"] == 0 and attributes["wdm_steps"] == 3
    coarse = read_field(SAMPLE)
    with netCDF4.Dataset(tmp_path / "mrms_10km_1km.nc") as data:
        np.testing.assert_allclose(data["lat"][:].reshape(52, 10).mean(1), coarse.grid.y)
        np.testing.assert_array_equal(data["realization"][:], [0, 1])


def test_same_seed_same_file_whatever_the_batch(infer, tmp_path):
    assert infer("-o", "a.nc", "--members", 2, "--batch", 1, "--no-pixel-probe")[0] == 0
    assert infer("-o", "b.nc", "--batch", 7, "--no-pixel-probe")[0] == 0
    assert infer("-o", "c.nc", "--seed", 1, "--no-pixel-probe")[0] == 0
    a, b, c = (rates(tmp_path / name)[0] for name in ("a.nc", "b.nc", "c.nc"))
    np.testing.assert_array_equal(a[:, :1], b)
    assert not np.array_equal(b, c)


def test_a_bundle_without_the_graph_of_a_precision_says_so(infer, tiny_copy):
    manifest = json.loads((tiny_copy / "manifest.json").read_text())
    del manifest["graphs"]["score_fp16"]
    (tiny_copy / "manifest.json").write_text(json.dumps(manifest))
    words = ("--bundle", tiny_copy, "--engine", "ort-cpu", "--no-pixel-probe")
    code, _, err = infer(*words, "--precision", "fp16")
    assert code == 4 and "has no graph 'score_fp16'" in err and "--precision" in err
    assert infer(*words)[0] == 0


def test_plans_are_built_of_tensorrt_alone(run, tiny):
    code, _, err = run("build-engine", "--bundle", tiny, "--engine", "ort-cpu")
    assert code == InputError.exit_code and "tensorrt or tensorrt-rtx" in err


NOT_AN_ENGINES = (InputError, OutputError, MissingDependencyError)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-o", "a.tif"), "a.tif: has suffix"),
        (("-o", "nowhere/a.tif"), "a.tif: has suffix"),  # a folder made for it would not help
        (("-o", "a.zarr"), "pip install '.[xarray]' in the clone"),
        (("-o", "a.grib2"), "pip install '.[grib]' in the clone"),
        (("--units", "K"), "--units"),
        ((), "has cells of 10 x 10 km"),
    ],
)
def test_what_cannot_be_had_is_said_before_an_engine_is_opened(
    infer, monkeypatch, tiny_copy, words, said
):
    for name in ("zarr", "eccodes"):
        monkeypatch.setitem(sys.modules, name, None)
    if not words:
        edit_manifest(tiny_copy, factor=5)  # of which 10 km are no input
        words = ("--bundle", tiny_copy)

    def opens(*_, **__):
        raise AssertionError("an engine was opened")

    monkeypatch.setattr(Downscaler, "open", opens)
    code, _, err = infer(*words)
    assert said in err and code in (cls.exit_code for cls in NOT_AN_ENGINES)


@pytest.mark.parametrize("factor", [5, 3])
def test_a_box_fits_bundles_of_other_factors(infer, run, tiny_copy, tmp_path, factor):
    edit_manifest(tiny_copy, factor=factor)
    words = ("--bundle", tiny_copy, "--assume-factor", "--no-pixel-probe")
    whole, inside = read_field(SAMPLE), (5, 7)  # an odd cell
    west, south = whole.grid.x[inside[1]], whole.grid.y[inside[0] + 8]
    box = f"{west},{south},{west + 1.5},{south + 0.8}"
    code, _, err = infer(*words, f"--bbox={box}", "-o", "part.nc")
    assert code == 0, err
    values, _ = rates(tmp_path / "part.nc")
    assert values.shape[-2] % factor == 0 and min(values.shape[-2:]) < 30 * factor
    code, _, err = run("plot", "part.nc", "--input", SAMPLE, "--figure", "part.png")
    assert code == 0, err


def test_batches_of_any_number_of_digits_are_refused(infer):
    code, _, err = infer("--batch", "9" * 5000)
    assert code == InputError.exit_code and "--batch" in err


def test_replay_reads_within_its_memory(infer, run, tiny, tmp_path):
    rows, columns = 1600, 2000
    with netCDF4.Dataset(tmp_path / "large.nc", "w") as data:
        coordinates(data, 50 - 0.02 * np.arange(rows), 0.02 * np.arange(columns), [0.0])
        rain = np.zeros((1, rows, columns))
        add(data, "rain", rain, units="mm h-1", standard_name="lwe_precipitation_rate")
    cut = ("--bbox", "1,49,1.3,49.3", "--assume-factor", "--no-pixel-probe")
    assert infer("-o", "a.nc", *cut, source=tmp_path / "large.nc")[0] == 0
    assert run("replay", "a.nc", "--bundle", tiny)[0] == 0
    code, _, err = run("replay", "a.nc", "--bundle", tiny, "--max-memory", "4MiB")
    assert code == InputError.exit_code and "large.nc" in err and "of memory" in err


def test_threads_beyond_any_machine_are_refused(infer):
    code, _, err = infer("--threads", "3000000000")
    assert code == InputError.exit_code and "Set --threads" in err


def test_a_user_without_a_home_goes_without_a_cache(infer, monkeypatch, tmp_path):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(OutputError, match="Set XDG_CACHE_HOME"):
        cache_folder()
    code, _, err = infer("--report", "r.json")
    assert code == 0, err
    assert json.loads((tmp_path / "r.json").read_text())["pixel_step_latency_ms"] > 0


def test_quiet_keeps_the_note_on_latitudes_that_training_never_saw(infer, tmp_path):
    far = tmp_path / "far.nc"
    far.write_bytes(SAMPLE.read_bytes())
    with netCDF4.Dataset(far, "a") as dataset:
        dataset["lat"][:] = dataset["lat"][:] + 30
    code, out, err = infer("--quiet", "--no-pixel-probe", source=far)
    assert (code, out) == (0, "") and "outside the latitudes" in " ".join(err.split())


def test_quiet_prints_nothing(infer):
    code, out, err = infer("--quiet", "--no-pixel-probe")
    assert (code, out, err) == (0, "", "")


def write(path, values, units="mm h-1", name="precipitation_rate"):
    with netCDF4.Dataset(path, "w") as data:
        for dim, size in zip(("lat", "lon"), values.shape, strict=True):
            data.createDimension(dim, size)
            axis = data.createVariable(dim, "f8", (dim,))
            axis.units = {"lat": "degrees_north", "lon": "degrees_east"}[dim]
            axis[:] = 0.1 * np.arange(size)
        for one in name.split():
            rain = data.createVariable(one, "f4", ("lat", "lon"), fill_value=-9999.0)
            rain.units, rain.standard_name = units, "lwe_precipitation_rate"
            rain[:] = values
    return path


def test_a_domain_smaller_than_a_tile_works(infer, tmp_path):
    source = write(tmp_path / "small.nc", np.full((3, 4), 2.0))
    assert infer("-o", "out.nc", "--no-pixel-probe", source=source)[0] == 0
    assert rates(tmp_path / "out.nc")[0].shape == (1, 1, 30, 40)


BAD_INPUTS = {
    "missing": (lambda p: p / "nowhere.nc", (), 2, "no such file"),
    "text": (lambda p: _text(p), (), 2, "cannot be read"),
    "no rain": (lambda p: write(p / "t.nc", np.ones((3, 4)), "K"), (), 2, "units 'K'"),
    "several": (
        lambda p: write(p / "s.nc", np.ones((3, 4)), name="rain snow"),
        (),
        2,
        "--variable",
    ),
    "all missing": (lambda p: write(p / "n.nc", np.full((3, 4), np.nan)), (), 2, "no valid value"),
    "variable": (lambda p: SAMPLE, ("--variable", "tp"), 2, "has no field 'tp'"),
    "engine": (lambda p: SAMPLE, ("--engine", "npu"), 4, "ort-cpu"),
    "precision": (lambda p: SAMPLE, ("--precision", "int4"), 4, "fp16"),
    "sampler": (lambda p: SAMPLE, ("--sampler", "ddim"), 2, "second-order"),
    "members": (lambda p: SAMPLE, ("--members", "0"), 2, "0 members"),
    "batch": (lambda p: SAMPLE, ("--batch", "many"), 2, "'many'"),
    "bundle": (lambda p: SAMPLE, ("--bundle", "nowhere"), 3, "manifest.json"),
    "no folder": (lambda p: SAMPLE, ("-o", "no/out.nc"), 2, "does not exist"),
    "report folder": (lambda p: SAMPLE, ("--report", "no/r.json"), 2, "does not exist"),
}


def _text(folder):
    path = folder / "notes.nc"
    path.write_text("not a NetCDF file")
    return path


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_is_a_clear_error_and_leaves_nothing(infer, tmp_path, case):
    make, options, expected, message = BAD_INPUTS[case]
    source = make(tmp_path)
    before = set(tmp_path.iterdir())
    code, out, err = infer(*options, "--no-pixel-probe", source=source)
    assert code == expected
    assert message in err and err.startswith("error: ") and "Traceback" not in err + out
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "module", "extra"),
    [
        (("infer", "rain.grib2"), "eccodes", "grib"),
        (("plot", "rain.nc", "-o", "rain.png"), "matplotlib", "plot"),
        (("infer", SAMPLE, "--engine", "ort-cpu"), "onnxruntime", "cpu"),
    ],
)
def test_a_missing_extra_names_its_install_line(
    run, tmp_path, monkeypatch, tiny, arguments, module, extra
):
    monkeypatch.setitem(sys.modules, module, None)
    hidden = tmp_path / "hidden"  # for the process that reads
    hidden.mkdir()
    (hidden / f"{module}.py").write_text("raise ImportError('not installed')")
    monkeypatch.syspath_prepend(hidden)
    for name in ("rain.grib2", "rain.nc"):
        (tmp_path / name).write_bytes(b"GRIB")
    options = ("--bundle", tiny) if "infer" in arguments else ()
    code, _, err = run(*arguments, *options)
    assert code == 4 and f"pip install '.[{extra}]' in the clone" in err and "Traceback" not in err
    assert not list(tmp_path.glob("*_1km.nc"))


def test_a_corrupt_bundle_is_refused(infer, tiny_copy, tmp_path):
    edit_manifest(tiny_copy, factor=None)
    code, _, err = infer("--bundle", tiny_copy)
    assert code == 3 and "factor" in err
    code, _, err = infer("--bundle", tiny_copy.parent)
    assert code == 3


def test_a_wrong_hash_is_refused(infer, tiny_copy):
    path = tiny_copy / "score_fp32.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    code, _, err = infer("--bundle", tiny_copy)
    assert code == 3 and "SHA-256" in err


def test_an_existing_output_is_kept_without_overwrite(infer, tmp_path):
    old = tmp_path / "out.nc"
    old.write_text("precious")
    code, _, err = infer("-o", "out.nc", "--no-pixel-probe")
    assert code == 2 and "--overwrite" in err and old.read_text() == "precious"
    assert infer("-o", "out.nc", "--overwrite", "--no-pixel-probe")[0] == 0
    assert rates(old)[0].shape[-1] == 760


def test_an_interrupted_run_keeps_the_old_output(infer, tmp_path, monkeypatch):
    old = tmp_path / "out.nc"
    old.write_text("precious")

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sampling, "finish", stop)
    code, _, _ = infer("-o", "out.nc", "--overwrite", "--no-pixel-probe")
    assert code != 0 and old.read_text() == "precious"
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".tmp")]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(infer, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    code, _, err = infer("-o", locked / "out.nc", "--no-pixel-probe")
    assert code == 2 and "not writable" in err


def test_info_shows_and_checks_a_bundle(run, tiny, tiny_copy):
    code, out, _ = run("info", tiny)
    assert code == 0 and "haar" in out and "score_fp32" in out
    code, out, _ = run("info", tiny, "--json")
    assert code == 0 and json.loads(out)["sha256"] == Bundle.open(tiny).sha256
    (tiny_copy / "MODEL_CARD.md").write_text("another card")
    code, _, err = run("info", tiny_copy)
    assert code == 3 and "MODEL_CARD.md" in err


def test_vv_shows_the_traceback(run):
    code, _, err = run("-vv", "infer", "nowhere.nc")
    assert code == 2 and "InputError" in err


@pytest.mark.parametrize("name", ["run[test] b.nc", "d[/b].nc"])
def test_names_are_shown_as_they_are(infer, tmp_path, name):
    output = tmp_path / name
    output.parent.mkdir(exist_ok=True)
    code, out, _ = infer("-o", output, "--no-pixel-probe")
    assert code == 0 and output.exists() and name.rpartition("/")[2] in out


def test_who_stops_reading_stops_no_run(tiny, tmp_path):
    command = [sys.executable, "-c", "from wdm_runtime.cli import main; main()"]
    options = ["--bundle", tiny, "--steps", "3", "-o", tmp_path / "o.nc", "--no-pixel-probe"]
    code = subprocess.run(
        [
            "bash",
            "-c",
            '"$@" | true; exit ${PIPESTATUS[0]}',
            "-",
            *command,
            "infer",
            SAMPLE,
            *options,
        ]
    ).returncode
    assert code == 0 and (tmp_path / "o.nc").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_words_that_a_full_disk_does_not_take_end_no_run(tiny, tmp_path):
    command = [sys.executable, "-c", "from wdm_runtime.cli import main; main()"]
    options = ["--bundle", tiny, "--steps", "3", "-o", tmp_path / "o.nc", "--no-pixel-probe"]
    with open("/dev/full", "w") as full:
        code = subprocess.run(
            [*command, "infer", SAMPLE, *options], stdout=full, stderr=full
        ).returncode
    assert code == 0 and (tmp_path / "o.nc").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_an_answer_that_a_full_disk_does_not_take_is_one_message(tiny):
    command = [sys.executable, "-c", "from wdm_runtime.cli import main; main()"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*command, "info", tiny, "--json"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == OutputError.exit_code
    assert done.stderr.startswith("error: ") and "No space left" in done.stderr
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


def test_an_answer_that_nobody_reads_any_more_is_no_message(tiny):
    command = [sys.executable, "-c", "from wdm_runtime.cli import main; main()"]
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [*command, "info", tiny, "--json"], stdout=writing, stderr=subprocess.PIPE, text=True
        )
    finally:
        os.close(writing)
    assert done.stderr == ""


def test_a_current_folder_that_is_gone_is_a_clear_error(infer, tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    code, _, err = infer("--no-pixel-probe")
    assert code == OutputError.exit_code and "the current folder" in err and "expected" in err


def test_a_name_that_the_terminal_cannot_show_fails_no_run(tiny, tmp_path):
    command = [sys.executable, "-c", "from wdm_runtime.cli import main; main()"]
    options = ["--bundle", tiny, "--steps", "3", "-o", "öut.nc", "--no-pixel-probe"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [*command, "infer", SAMPLE, *options], cwd=tmp_path, env=environment, capture_output=True
    )
    assert done.returncode == 0 and (tmp_path / "öut.nc").exists()
