"""The forms for compilers compute what the network computes."""

import pytest

torch = pytest.importorskip("torch")

from small_training import random_network, small  # noqa: E402

from wdm_export import compiler_form  # noqa: E402
from wdm_export.compiler_form import (  # noqa: E402
    BlockNorm,
    CpuForm,
    FlatTimeEmbedding,
    FlatTimeTerms,
    GpuForm,
    MomentNorm,
    TimeTerms,
    TransposedUpsample,
)
from wdm_export.unet import TimeEmbedding, Upsample  # noqa: E402


@pytest.fixture
def network():
    return random_network(small(multipliers=(1, 2)))


def inputs(batch=2, size=8):
    generator = torch.Generator().manual_seed(0)
    x, condition = torch.randn(2, batch, 16, size, size, generator=generator)
    return x, condition, torch.tensor([0.3])


@torch.inference_mode()
def test_the_form_for_cpus_is_the_network(network):
    given = inputs()
    expected = network(*given)
    torch.testing.assert_close(CpuForm(network)(*given), expected, atol=2e-5, rtol=1e-5)
    assert torch.equal(network(*given), expected), "the original was changed"


@torch.inference_mode()
@pytest.mark.parametrize("one_block", [0, compiler_form.ONE_BLOCK], ids=["large", "small"])
def test_the_form_for_gpus_is_the_network_in_fp16(network, monkeypatch, one_block):
    monkeypatch.setattr(compiler_form, "ONE_BLOCK", one_block)
    given = inputs()
    expected = network(*given)
    found = GpuForm(network)(*given)
    assert found.dtype == torch.float32
    assert 0 < (found - expected).abs().max() < 5e-3 * expected.abs().max()
    assert torch.equal(network(*given), expected), "the original was changed"


@torch.inference_mode()
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 4), (5, 3)])
def test_upsampling_by_a_transposed_convolution_is_doubling_and_convolving(rows, columns):
    torch.manual_seed(0)
    up = Upsample(6)
    x = torch.randn(2, 6, rows, columns)
    found = TransposedUpsample(up)(x)
    assert found.shape == (2, 6, 2 * rows, 2 * columns)
    torch.testing.assert_close(found, up(x), atol=1e-6, rtol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("mean", [0.0, 300.0])
def test_small_norms_keep_their_statistics_in_fp32(mean):
    """Squares of such values are beyond fp16, and their mean hides differences from it."""
    norm = torch.nn.GroupNorm(2, 8)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = (torch.randn(2, 8, 6, 6) * 400 + mean).half()
    found = BlockNorm(norm.half())(x)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), norm.float()(x.float()), atol=1e-2, rtol=5e-3)


@torch.inference_mode()
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_the_norm_from_moments_is_the_group_norm(mean):
    norm = torch.nn.GroupNorm(3, 12)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 12, 5, 7) * 2 + mean
    torch.testing.assert_close(MomentNorm(norm)(x), norm(x), atol=2e-4, rtol=1e-4)


@torch.inference_mode()
def test_rounding_is_no_nan_in_the_norm_from_moments():
    """The variance of equal values is what rounding leaves: here sometimes less than -eps."""
    norm = torch.nn.GroupNorm(2, 16)
    x = torch.linspace(100, 400, 64)[:, None, None, None].expand(64, 16, 5, 5)
    mean, square = x.mean(dim=(1, 2, 3)), (x * x).mean(dim=(1, 2, 3))
    assert (square - mean * mean).min() < -norm.eps, "the case is no case"
    assert MomentNorm(norm)(x).isfinite().all()


@torch.inference_mode()
def test_the_time_without_matrix_products_is_the_time(network):
    torch.manual_seed(0)
    embed = TimeEmbedding(64, 64)
    for t in (0.0, 0.37, 1.0):
        time = torch.tensor([t])
        torch.testing.assert_close(FlatTimeEmbedding(embed)(time), embed(time))
        expected = network.time_terms(time, torch.float32)
        emb = network.time(time)
        for form in (TimeTerms, FlatTimeTerms):
            found = form(network)(emb)
            assert len(found) == len(expected) == len(network.residual_blocks())
            for ours, theirs in zip(found, expected, strict=True):
                torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
