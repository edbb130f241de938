"""Fine = interpolated coarse leaves nothing to draw, and a bundle for which it does is refused."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from conftest import TRUTH, edit_manifest, rewrite_graph
from rich.console import Console

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

import onnx
from onnx import numpy_helper
from test_evaluate import FACTOR, field_of, showers

from wdm_export import identity
from wdm_export.coarsen import coarsen
from wdm_runtime.bundle import Bundle
from wdm_runtime.errors import InputError, ParityError
from wdm_runtime.grid import interpolate
from wdm_runtime.io import read_field

TILE = 64


def test_interpolated_fields_leave_no_residual_and_real_ones_do(tiny: Path) -> None:
    result = identity.measure(Bundle.open(tiny), [read_field(TRUTH)], TILE)
    assert result.tiles > 5 and len(result.names) == 16
    assert result.rms.max() < 1e-5 and result.rate_error < 1e-5
    result.require()
    # The scales are of other days, so of the same order and no more.
    quotient = result.std / result.bundle_std
    assert quotient.min() > 0.3 and quotient.max() < 3


def test_a_real_field_that_is_interpolated_is_its_own_residual_of_zero(tiny: Path) -> None:
    """As data, not as a special case: a fine field made by interpolation, read as truth is."""
    smooth = interpolate(coarsen(field_of(showers(0)), FACTOR).frame(0), FACTOR)
    made = field_of(smooth)
    result = identity.measure(Bundle.open(tiny), [made], TILE)
    # Its block means are not quite the input it was made from, so something is left, but the
    # finest diagonal is hardly there: where interpolation ends at 0, z has a kink.
    real = identity.measure(Bundle.open(tiny), [field_of(showers(0))], TILE)
    assert result.std[-1] < 0.1 * real.std[-1]
    assert result.rms.max() < 1e-5


def test_another_transform_than_the_bundles_graph_is_noticed(tiny_copy: Path) -> None:
    """A wavelet graph whose subbands come in another order fails, though it is orthonormal."""
    bundle = Bundle.open(tiny_copy)
    graph = onnx.load_from_string(bundle.graph("dwt"))
    changed = 0
    for tensor in graph.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype.kind == "f" and values.ndim == 4:
            tensor.CopyFrom(numpy_helper.from_array(values[::-1].copy(), tensor.name))
            changed += 1
    assert changed
    rewrite_graph(tiny_copy, "dwt", graph.SerializeToString())
    result = identity.measure(Bundle.open(tiny_copy), [read_field(TRUTH)], TILE)
    assert not result.passed
    with pytest.raises(ParityError, match="wdm-export check"):
        result.require()
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(identity.render(result))
    assert "FAILED" in console.export_text()


def test_residuals_are_in_the_bundles_standard_deviations(tiny_copy: Path) -> None:
    scale = Bundle.open(tiny_copy).manifest.residual_scale
    doubled = {"mean": list(scale.mean), "std": [2 * value for value in scale.std]}
    before = identity.measure(Bundle.open(tiny_copy), [read_field(TRUTH)], TILE)
    edit_manifest(tiny_copy, residual_scale=doubled)
    after = identity.measure(Bundle.open(tiny_copy), [read_field(TRUTH)], TILE)
    assert after.rms == pytest.approx(before.rms / 2) and after.std == pytest.approx(before.std)


def test_nothing_to_look_at_and_tiles_that_do_not_fit_are_refused(tiny: Path) -> None:
    dry = field_of(np.zeros((135, 207), np.float32))
    with pytest.raises(InputError, match="No field has a tile"):
        identity.measure(Bundle.open(tiny), [dry], TILE)
    with pytest.raises(InputError, match="--tile got 62 cells; expected a multiple of 4"):
        identity.measure(Bundle.open(tiny), [dry], 62)
