"""The fused step on real CPU engines: NumPy's numbers, who uses it when, and what a run says."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import netCDF4
import numpy as np
import pytest
from conftest import edit_manifest
from one_tile import CELLS, alone, first_steps, loop, shower_field, shower_mm_h

from wdm_runtime import downscale
from wdm_runtime.bundle import Bundle
from wdm_runtime.downscale import Downscaler
from wdm_runtime.engines import open_engine, open_step, select, step_pays
from wdm_runtime.engines.families import FAMILIES
from wdm_runtime.engines.options import EngineOptions
from wdm_runtime.engines.step import step_graph
from wdm_runtime.errors import BundleError, EngineError, OutputError
from wdm_runtime.fused import FusedStep, integrate_on_engine
from wdm_runtime.samplers import SAMPLERS

STEPS = 3


def downscaled(bundle, field, fused, batch=None, members=2, sampler=None, steps=STEPS):
    """Members by (frame, member), and the time of each step."""
    options, seen = EngineOptions(batch=batch, fused_step=fused), []
    with Downscaler.open(bundle, "ort-cpu", options=options) as downscaler:
        drawn = downscaler.downscale(
            field, members, steps=steps, sampler=sampler, on_step=seen.append, consistency="none"
        )
        return {(s.time_index, s.member): s.rate_mm_h for s in drawn}, seen


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", ["ort-cpu", "openvino"])
def test_eight_steps_are_those_of_numpys_loop(tiny, kind, sampler):
    if kind == "openvino":
        pytest.importorskip("openvino")
    bundle, choice, options = Bundle.open(tiny), select(kind, "fp32"), EngineOptions(threads=1)
    entry = bundle.manifest.graphs["score_fp32"]
    score = open_engine(bundle.graph("score_fp32"), entry, kind, "fp32", options)
    x, condition, *noise = np.random.default_rng(0).standard_normal(
        (9, 2, 16, 16, 16), dtype=np.float32
    )
    steps = first_steps(bundle, sampler, 8)
    fused = open_step(bundle, choice, options)
    found = integrate_on_engine(fused, x, condition, steps, noise.__getitem__, None)
    expected = loop(score.run, (x, condition, noise), steps)
    # The same roundings in the same order: what differs is the engine's fused multiply-adds.
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(expected).max() > 0.1


def test_no_weight_is_stored_twice(tiny):
    bundle = Bundle.open(tiny)
    assert bundle.manifest.graphs["step"].bytes < 1000
    for precision in ("fp32", "fp16"):
        score = len(bundle.graph(f"score_{precision}"))
        assert step_graph(bundle, precision)[1].bytes < score + 1000


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_members_are_those_of_numpys_loop(tiny, sampler):
    field = shower_field(shower_mm_h(frames=2))
    expected, before = downscaled(tiny, field, False, sampler=sampler)
    found, steps = downscaled(tiny, field, True, sampler=sampler)
    assert all(step.fused for step in steps) and not any(step.fused for step in before)
    assert sum(step.tiles for step in steps) == sum(step.tiles for step in before) == 4 * STEPS
    for key, rate in expected.items():
        assert rate.max() > 0.1
        np.testing.assert_allclose(found[key], rate, rtol=1e-4, atol=1e-4)


def test_frames_of_more_tiles_stay_with_numpy_and_no_batch_changes_a_member(tiny):
    """The state of several tiles is blended at every step."""
    rate = np.concatenate([shower_mm_h(), shower_mm_h(wide=True), shower_mm_h()])
    field = shower_field(rate)
    by_loop, _ = downscaled(tiny, field, False)
    expected, steps = downscaled(tiny, field, True)
    assert {step.tiles for step in steps if step.fused} == {1}
    assert sum(step.fused for step in steps) == 2 * 2 * STEPS
    for member in (0, 1):
        np.testing.assert_array_equal(expected[1, member], by_loop[1, member])
    for batch in (2, 3, 64):
        found, _ = downscaled(tiny, field, True, batch)
        for key, rate in expected.items():
            np.testing.assert_array_equal(found[key], rate)


@pytest.mark.parametrize(("asked", "count"), [(True, 1), (None, 0), (False, 0)])
def test_who_asked_for_it_is_told_once_where_it_does_not_serve(tiny, asked, count):
    notes, field = [], shower_field(np.concatenate([shower_mm_h(wide=True)] * 2))
    options = EngineOptions(fused_step=asked, note=notes.append)
    with Downscaler.open(tiny, "ort-cpu", options=options) as downscaler:
        assert len(list(downscaler.downscale(field, 2, steps=STEPS))) == 4
    assert len(notes) == count and all("by the loop in NumPy" in note for note in notes)


def test_a_field_of_missing_and_dry_frames(tiny):
    rate = shower_mm_h(frames=3)
    rate[0], rate[1] = 0, np.nan
    drawn, steps = downscaled(tiny, shower_field(rate), True, members=1)
    assert len(steps) == STEPS
    assert not drawn[0, 0].any() and np.isnan(drawn[1, 0]).all() and drawn[2, 0].max() > 0


def test_numpys_loop_is_the_default_on_cpus(tiny):
    assert not step_pays("ort-cpu") and not step_pays("openvino")
    _, steps = downscaled(tiny, shower_field(shower_mm_h()), None)
    assert not any(step.fused for step in steps)


def test_bundles_without_it_work_and_say_so_when_it_is_asked_for(tiny_copy):
    graphs = json.loads((tiny_copy / "manifest.json").read_text())["graphs"]
    del graphs["step"]
    edit_manifest(tiny_copy, graphs=graphs)
    drawn, _ = downscaled(tiny_copy, shower_field(shower_mm_h()), None)
    assert drawn[0, 0].shape == (10 * CELLS, 10 * CELLS)
    with pytest.raises(BundleError, match=r"has no graph 'step'.*export the bundle again"):
        Downscaler.open(tiny_copy, "ort-cpu", options=EngineOptions(fused_step=True))


def test_an_engine_that_would_round_the_state_refuses(tiny):
    pytest.importorskip("openvino")
    choice = replace(select("openvino", "fp32"), precision="bf16")
    with pytest.raises(EngineError, match=r"update in bf16; expected fp32.*--fused-step"):
        open_step(Bundle.open(tiny), choice, EngineOptions(threads=1))


class Overflows:
    """A step engine that half precision failed."""

    def load(self, x, condition):
        self._shape = x.shape

    def step(self, t, scalars, noise):
        pass

    def read(self):
        return np.full(self._shape, np.nan, np.float32)

    def close(self):
        pass


def test_what_overflows_is_computed_again_by_the_watched_loop(tiny):
    field, notes = shower_field(shower_mm_h()), []
    expected, _ = downscaled(tiny, field, False)
    with Downscaler.open(tiny, "ort-cpu") as downscaler:
        downscaler.fused = FusedStep(Overflows, True, notes.append)
        drawn = list(downscaler.downscale(field, 2, steps=STEPS, consistency="none"))
    for sample in drawn:
        np.testing.assert_array_equal(sample.rate_mm_h, expected[0, sample.member])
    assert len(notes) == 1 and "not finite" in notes[0]


class OverflowsOnce(Overflows):
    """A step engine that half precision failed on the second of its tiles."""

    def read(self):
        answer = np.ones(self._shape, np.float32)
        answer[1:2] = np.inf
        return answer


def test_only_what_overflowed_is_drawn_again_and_no_step_is_counted_twice(tiny):
    field, taken = shower_field(shower_mm_h()), []
    by_loop, _ = downscaled(tiny, field, False, members=3)
    options = EngineOptions(batch=3, note=lambda text: None)
    with Downscaler.open(tiny, "ort-cpu", options=options) as downscaler:
        downscaler.fused = FusedStep(OverflowsOnce, True, lambda text: None)
        drawn = list(
            downscaler.downscale(field, 3, steps=STEPS, consistency="none", on_step=taken.append)
        )
    same = [np.array_equal(s.rate_mm_h, by_loop[0, s.member]) for s in drawn]
    assert same == [False, True, False]
    assert [(s.fused, s.tiles) for s in taken] == [(True, 2)] * STEPS + [(False, 1)] * STEPS


@pytest.mark.parametrize("error", [EngineError, OutputError])
@pytest.mark.parametrize("required", [True, False])
def test_an_engine_that_does_not_open_is_an_error_only_if_asked_for(tiny, required, error):
    tries, notes = [], []

    def refuse():
        tries.append(1)
        raise error("There is no plan.")

    field = shower_field(shower_mm_h(frames=2))
    with Downscaler.open(tiny, "ort-cpu") as downscaler:
        downscaler.fused = FusedStep(refuse, required, notes.append)
        drawn = downscaler.downscale(field, 1, steps=STEPS)
        if required:
            with pytest.raises(error, match="There is no plan"):
                next(drawn)
            return
        assert len(list(drawn)) == 2
    assert len(tries) == 1 and len(notes) == 1 and "NumPy" in notes[0]


# What a run says of itself, and replay.


def fused_steps(path):
    with netCDF4.Dataset(path) as file:
        return int(file.wdm_fused_steps)


@pytest.mark.parametrize(("option", "count"), [("--fused-step", 3), ("--numpy-step", 0)])
def test_a_run_says_who_did_the_updates_and_replay_does_the_same(
    infer, run, tiny, tmp_path, option, count
):
    options = ("--engine", "ort-cpu", option, "-o", "out.nc")
    code, out, error = infer(*options, source=alone(tmp_path / "shower.nc"))
    assert code == 0, error
    assert ("3 sampler steps wholly on the engine" in out) == (count == 3)
    assert fused_steps("out.nc") == count
    code, out, error = run("replay", "out.nc", "--bundle", tiny)
    assert code == 0 and "matches bit for bit" in out, error


def test_replay_in_another_precision_says_what_changed(infer, run, tiny, tmp_path):
    options = ("--engine", "ort-cpu", "--precision", "fp32", "-o", "out.nc")
    assert infer(*options, source=alone(tmp_path / "shower.nc"))[0] == 0
    code, _, error = run("replay", "out.nc", "--bundle", tiny, "--precision", "fp16")
    assert code == 5 and "precision 'fp32' then, 'fp16' now" in error


@pytest.fixture
def opened_with(monkeypatch):
    """What engines are opened with in a replay."""
    seen = []
    open_engines = downscale.open_engines

    def opened(bundle, engine, precision, options):
        seen.append(options.fused_step)
        return open_engines(bundle, engine, precision, options)

    monkeypatch.setattr(downscale, "open_engines", opened)
    return seen


def test_replay_can_be_told_who_does_the_updates(infer, run, tiny, tmp_path, opened_with):
    options = ("--engine", "ort-cpu", "--fused-step", "-o", "out.nc")
    assert infer(*options, source=alone(tmp_path / "shower.nc"))[0] == 0
    for asked in ((), ("--numpy-step",)):
        code, _, error = run("replay", "out.nc", "--bundle", tiny, *asked)
        assert code in (0, 5), error  # the engine's fused multiply-adds may round otherwise
    assert opened_with == [True, True, False]
    with netCDF4.Dataset("out.nc", "a") as file:
        file.wdm_fused_steps = "some"
    code, _, error = run("replay", "out.nc", "--bundle", tiny)
    assert code == 2 and "'wdm_fused_steps' is 'some'; expected a number" in error


def test_replay_on_an_engine_without_it_is_drawn_in_numpy(
    infer, run, tiny, tmp_path, monkeypatch, opened_with
):
    options = ("--engine", "ort-cpu", "--fused-step", "-o", "out.nc")
    assert infer(*options, source=alone(tmp_path / "shower.nc"))[0] == 0
    without = replace(FAMILIES["ort-cpu"], step_precisions=())
    monkeypatch.setitem(FAMILIES, "ort-cpu", without)
    code, _, error = run("replay", "out.nc", "--bundle", tiny)
    assert code in (0, 5) and "--fused-step" not in error
    assert opened_with == [True, False]


def test_an_output_of_a_version_without_it_is_replayed_in_numpy(infer, run, tiny, tmp_path):
    options = ("--engine", "ort-cpu", "-o", "out.nc")
    assert infer(*options, source=alone(tmp_path / "shower.nc"))[0] == 0
    with netCDF4.Dataset("out.nc", "a") as file:
        file.delncattr("wdm_fused_steps")
    code, out, error = run("replay", "out.nc", "--bundle", tiny)
    assert code == 0 and "matches bit for bit" in out, error


def test_threads_that_share_a_downscaler_get_their_own_members(tiny):
    field, options = shower_field(shower_mm_h()), EngineOptions(threads=1, fused_step=True)

    def members(seed):
        return np.stack([s.rate_mm_h for s in downscaler.downscale(field, 4, seed, STEPS)])

    with Downscaler.open(tiny, "ort-cpu", options=options) as downscaler:
        alone = [members(seed) for seed in range(4)]
        with ThreadPoolExecutor(4) as pool:
            for seed, found in enumerate(pool.map(members, [0, 1, 2, 3] * 4)):
                np.testing.assert_array_equal(found, alone[seed % 4])
