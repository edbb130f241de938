"""Addressed noise: golden values, statistics, and that only the address matters."""

import math

import numpy as np
import pytest

from wdm_runtime.errors import InputError
from wdm_runtime.noise import INITIAL_STEP, NoiseSource, noise_of, normals_from_words

TIME = "2022-08-09T15:00:00"
BOX = ((0, 24), (0, 40))
GOLDEN = [
    0.0720016,
    -0.7758301,
    -0.2263861,
    -0.2837913,
    -0.2325256,
    -0.1108107,
    -1.3953434,
    -0.8640952,
    0.7679991,
    0.7123338,
    0.7451267,
    -1.2898035,
    0.3034744,
    -0.0849277,
    1.9038768,
    -0.321693,
]


def test_golden_values():
    # Frozen when the map was defined: another value is another noise, and breaks every old file.
    drawn = NoiseSource(0, TIME, 0).draw(0, 16, (0, 1), (0, 1))[:, 0, 0]
    np.testing.assert_allclose(drawn, GOLDEN, rtol=0, atol=2e-6)


def test_raw_words_are_philox_at_the_documented_counter():
    source = NoiseSource(7, TIME, 3)
    row, column, subbands = 5, 11, 16
    counter = [(column + 2**32) * 2, row + 2**32, 0, 0]
    words = np.random.Philox(key=source._key(2), counter=counter).random_raw(8)
    expected = normals_from_words(words)
    drawn = source.draw(2, subbands, (row, row + 1), (column, column + 1))[:, 0, 0]
    np.testing.assert_array_equal(drawn, expected)


def test_map_covers_its_extremes():
    words = np.array([0, 2**64 - 1, 2**32 - 1, (2**32 - 1) << 32], dtype=np.uint64)
    normals = normals_from_words(words)
    assert np.all(np.isfinite(normals))
    assert abs(normals).max() == pytest.approx(np.sqrt(64 * np.log(2)), rel=1e-6)


def test_standard_normal_and_uncorrelated():
    draw = NoiseSource(1, TIME, 0).draw(INITIAL_STEP, 16, (0, 200), (0, 300)).astype(np.float64)
    n = draw.size
    assert abs(draw.mean()) < 5 / np.sqrt(n)
    assert abs(draw.var() - 1) < 5 * np.sqrt(2 / n)
    assert abs((draw**4).mean() - 3) < 5 * np.sqrt(96 / n)
    for lagged in (
        draw[1:] * draw[:-1],
        draw[:, 1:] * draw[:, :-1],
        draw[..., 1:] * draw[..., :-1],
    ):
        assert abs(lagged.mean()) < 5 / np.sqrt(lagged.size)


@pytest.mark.parametrize("subbands", [1, 4, 16])
def test_window_does_not_matter(subbands):
    source = NoiseSource(3, TIME, 1)
    whole = source.draw(4, subbands, (-6, 24), (-5, 40))
    part = source.draw(4, subbands, (2, 9), (-3, 31))
    np.testing.assert_array_equal(whole[:, 8:15, 2:36], part)


@pytest.mark.parametrize(
    ("other", "step"),
    [
        (NoiseSource(1, TIME, 0), 0),
        (NoiseSource(0, "2022-08-09T15:02:00", 0), 0),
        (NoiseSource(0, TIME, 1), 0),
        (NoiseSource(0, TIME, 0), 1),
        (NoiseSource(0, TIME, 0), INITIAL_STEP),
    ],
)
def test_every_part_of_the_address_counts(other, step):
    a = NoiseSource(0, TIME, 0).draw(0, 16, *BOX)
    b = other.draw(step, 16, *BOX)
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / np.sqrt(a.size)


def test_seed_and_member_do_not_add_up():
    a = NoiseSource(0, TIME, 1).draw(0, 4, *BOX)
    b = NoiseSource(1, TIME, 0).draw(0, 4, *BOX)
    assert not np.array_equal(a, b)


@pytest.mark.parametrize(
    ("time", "period"),
    [
        (TIME, -5.0),
        (TIME, 1e-310),
        (TIME, math.inf),
        (TIME, math.nan),
        (f"{TIME}Z", 5.0),
        ("none-0", 5.0),
    ],
)
def test_noise_evolves_over_a_period_and_from_a_date(time, period):
    with pytest.raises(InputError, match="--noise-decorrelation"):
        noise_of(0, time, 0, period)
