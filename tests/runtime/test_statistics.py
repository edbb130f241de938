"""Ensemble statistics: NumPy's numbers, whatever the memory, the order or the file system does."""

import os
import resource
import signal
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wdm_runtime.errors import InputError, OutputError
from wdm_runtime.statistics import MemberStore, StatisticsSpec

SPEC = StatisticsSpec((0.0, 0.1, 0.5, 0.75, 1.0), (0.1, 1.0, 20.0))
PLENTY = 1 << 24
ROW_BYTES = 5 * (6 * 5 + 48 + 8 * (2 + 5 + 3))  # of 6 members and 5 cells: see the error's number


def ensemble(members=5, shape=(11, 13), seed=0):
    rng = np.random.default_rng(seed)
    rate = rng.gamma(0.4, 6.0, (members, *shape)).astype(np.float32)
    rate[rate < 0.5] = 0
    return rate


def statistics(members, folder, max_bytes=PLENTY, order=None, spec=SPEC):
    """All blocks joined: mean, standard deviation, quantiles, exceedance."""
    with MemberStore(len(members), members.shape[1:], max_bytes, folder, spec) as store:
        for member in order if order is not None else range(len(members)):
            store.add(int(member), members[member])
        blocks = list(store.blocks())
    starts = np.cumsum([0, *(len(block.mean_mm_h) for block in blocks)])
    assert [block.first_row for block in blocks] == list(starts[:-1])
    names = ("mean_mm_h", "std_mm_h", "quantiles_mm_h", "exceedance")
    return [np.concatenate([getattr(b, name) for b in blocks], axis=-2) for name in names]


def test_statistics_are_numpys(tmp_path):
    members = ensemble()
    mean, std, quantiles, exceedance = statistics(members, tmp_path)
    exact = members.astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(std, exact.std(axis=0, ddof=1), rtol=1e-6)
    np.testing.assert_allclose(
        quantiles, np.quantile(exact, SPEC.quantiles, axis=0, method="linear"), rtol=1e-6
    )
    for share, threshold in zip(exceedance, SPEC.thresholds_mm_h, strict=True):
        np.testing.assert_array_equal(share, (exact >= threshold).mean(axis=0, dtype=np.float32))
    assert all(part.dtype == np.float32 for part in (mean, std, quantiles, exceedance))


def test_a_rate_on_the_threshold_exceeds_it(tmp_path):
    members = np.full((3, 2, 2), 0.7, dtype=np.float32)  # in float32 a little less than 0.7
    *_, exceedance = statistics(members, tmp_path, spec=StatisticsSpec((0.5,), (0.7, 0.8)))
    assert np.all(exceedance[0] == 1) and np.all(exceedance[1] == 0)


def test_a_cell_that_one_member_misses_is_missing_everywhere(tmp_path):
    members = ensemble()
    members[2, 4, 5] = members[0, 0, 0] = np.nan
    expected = np.isnan(members).any(axis=0)
    for part in statistics(members, tmp_path):
        np.testing.assert_array_equal(np.isnan(part), np.broadcast_to(expected, part.shape))


def test_one_member_is_its_own_statistics_but_has_no_spread(tmp_path):
    members = ensemble(members=1)
    mean, std, quantiles, exceedance = statistics(members, tmp_path)
    np.testing.assert_array_equal(mean, members[0])
    assert all(np.array_equal(quantile, members[0]) for quantile in quantiles)
    np.testing.assert_array_equal(exceedance[1], members[0] >= 1)
    assert np.isnan(std).all()


@given(st.integers(1, 9), st.permutations(range(6)), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_memory_spilling_and_order_change_no_bit(tmp_path_factory, rows, order, seed):
    folder = tmp_path_factory.mktemp("spill")
    members = ensemble(6, (9, 5), seed)
    expected = statistics(members, folder)
    tight = min(rows * ROW_BYTES, 2 * members.nbytes - 1)
    with MemberStore(6, (9, 5), tight, folder, SPEC) as store:
        assert store.spills
    for relabelled in (members, members[list(order)]):
        found = statistics(relabelled, folder, tight, order)
        for a, b in zip(found, expected, strict=True):
            assert a.tobytes() == b.tobytes()


@given(arrays(np.float32, (4, 1, 3), elements=st.floats(0, 300, width=32)))
@settings(max_examples=50, deadline=None)
def test_statistics_lie_between_the_extremes(tmp_path_factory, members):
    folder = tmp_path_factory.getbasetemp()
    mean, _, quantiles, exceedance = statistics(members, folder)
    assert np.all(np.diff(quantiles, axis=0) >= 0) and np.all(np.diff(exceedance, axis=0) <= 0)
    low, high = members.min(axis=0), members.max(axis=0)
    np.testing.assert_array_equal(quantiles[[0, -1]], [low, high])
    assert np.all((low <= mean) & (mean <= high))


def next_descriptor():
    """The number the next opened file would get: it grows if a file stays open."""
    descriptor = os.dup(0)
    os.close(descriptor)
    return descriptor


def test_what_is_spilled_leaves_nothing_and_takes_no_memory(tmp_path):
    members = ensemble(8, (256, 512))
    limit, descriptor = members.nbytes // 4, next_descriptor()
    tracemalloc.start()
    try:
        with MemberStore(8, (256, 512), limit, tmp_path, SPEC) as store:
            assert store.spills
            for member in range(8):
                store.add(member, members[member])
            count = 0
            for _ in store.blocks():
                count += 1
                assert not any(tmp_path.iterdir())  # no name that a crash could leave behind
        assert count > 4 and tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()
    assert next_descriptor() == descriptor


def test_an_error_closes_the_temporary_file(tmp_path):
    descriptor = next_descriptor()
    with (
        pytest.raises(RuntimeError, match="stop"),
        MemberStore(4, (64, 64), 40_000, tmp_path, SPEC),
    ):
        assert next_descriptor() > descriptor
        raise RuntimeError("stop")
    assert next_descriptor() == descriptor


def test_a_full_disk_is_an_output_error(tmp_path):
    members = ensemble(4, (64, 64))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with MemberStore(4, (64, 64), 40_000, tmp_path, SPEC) as store:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
            store.add(0, members[0])
            with pytest.raises(OutputError, match=r"4 members .*Free some space.*--max-memory"):
                store.add(1, members[1])
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_folder_that_is_not_there_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="nowhere"), MemberStore(
        4, (64, 64), 40_000, tmp_path / "nowhere", SPEC
    ):  # fmt: skip
        pass


def test_what_a_store_cannot_answer_is_said(tmp_path):
    members = ensemble(3)
    with MemberStore(3, (11, 13), PLENTY, tmp_path, SPEC) as store:
        for member, rate in ((3, members[0]), (-1, members[0]), (0, members[0, 1:])):
            with pytest.raises(InputError, match=r"expected one of 0 to 2 of shape \(11, 13\)"):
                store.add(member, rate)
        store.add(1, members[1])
        with pytest.raises(InputError, match="2 of 3 members are not in the store"):
            next(store.blocks())
    with pytest.raises(InputError, match=r"got 700 bytes; expected at least .*--max-memory"):
        MemberStore(3, (11, 13), 700, tmp_path, SPEC)  # before a member is drawn
    with pytest.raises(InputError, match="0 members"):
        MemberStore(0, (1, 1), PLENTY, tmp_path, SPEC)


def test_a_store_of_one_frame_after_the_other_keeps_nothing_of_the_first(tmp_path):
    first, second = ensemble(2), ensemble(2, seed=1)
    with MemberStore(2, (11, 13), PLENTY, tmp_path, SPEC) as store:
        for frame in (first, second):
            for member, rate in enumerate(frame):
                store.add(member, rate)
            (block,) = store.blocks()
            np.testing.assert_allclose(block.mean_mm_h, frame.mean(axis=0), rtol=1e-6)
        store.add(0, first[0])
        with pytest.raises(InputError, match="1 of 2 members are not in the store"):
            next(store.blocks())


def test_text_is_parsed():
    assert StatisticsSpec.parse() == StatisticsSpec()
    spec = StatisticsSpec.parse("0.25, 0.5", "1,2.5")
    assert spec == StatisticsSpec((0.25, 0.5), (1.0, 2.5))


@pytest.mark.parametrize("text", ["", "0.5,", "half", "0.5;0.9", "1.5", "-0.1", "0.9,0.5", "nan"])
def test_quantiles_that_are_none(text):
    with pytest.raises(InputError, match=r"--quantiles got .*expected .*Correct --quantiles"):
        StatisticsSpec.parse(quantiles=text)


@pytest.mark.parametrize(
    "text", ["", "1,x", "0,1", "-1", "1,1", "5,1", "inf", "nan", "1e39", "1e-60", "1,1.00000001"]
)
def test_thresholds_that_are_none(text):
    with pytest.raises(InputError, match=r"--thresholds got .*expected .*Correct --thresholds"):
        StatisticsSpec.parse(thresholds=text)
