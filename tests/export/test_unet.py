"""The score network: the shipped budget, shapes, and what its output depends on."""

import pytest

torch = pytest.importorskip("torch")

from small_training import random_network, small  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from wdm_export.config import NetworkConfig  # noqa: E402
from wdm_export.unet import TimeEmbedding, UNet, parameter_count  # noqa: E402
from wdm_runtime.errors import InputError  # noqa: E402
from wdm_runtime.wavelets import WaveletSpec  # noqa: E402

TILE_PX = 288
MAX_PARAMETERS = 7_000_000
MAX_FLOP = 16e9
WIDTH = 64  # TensorRT fuses group norm and SiLU for multiples of it


@pytest.fixture(scope="module")
def shipped():
    return UNet(NetworkConfig())


def inputs(config, batch=2, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, config.wavelet.subbands, size, size)
    x, condition = (torch.randn(shape, generator=generator) for _ in range(2))
    return x, condition, torch.full((batch,), 0.4)


def test_shipped_network_keeps_to_the_budget():
    config = NetworkConfig()
    size = TILE_PX // config.wavelet.stride
    with torch.device("meta"):
        network = UNet(config).eval()
        x = torch.empty(1, config.wavelet.subbands, size, size)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            out = network(x, x, torch.empty(1))
    assert out.shape == x.shape
    assert 1e6 < parameter_count(network) <= MAX_PARAMETERS
    assert 1e9 < counter.get_total_flops() <= MAX_FLOP


def test_shipped_widths_are_multiples_of_64(shipped):
    subbands = shipped.config.wavelet.subbands
    ends = {2 * subbands, subbands}
    norms = [m.num_channels for m in shipped.modules() if isinstance(m, torch.nn.GroupNorm)]
    convs = [
        (m.in_channels, m.out_channels) for m in shipped.modules() if isinstance(m, torch.nn.Conv2d)
    ]
    assert norms and all(channels % WIDTH == 0 for channels in norms)
    odd = [pair for pair in convs if any(width % WIDTH for width in pair)]
    assert sorted(odd) == [(2 * subbands, WIDTH), (WIDTH, subbands)], ends


def test_the_flops_fall_with_the_wavelet_levels():
    counts = []
    for levels in (0, 1, 2):
        config = NetworkConfig(WaveletSpec(levels=levels), attention=False)
        size = TILE_PX // config.wavelet.stride
        with torch.device("meta"):
            x = torch.empty(1, config.wavelet.subbands, size, size)
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                UNet(config)(x, x, torch.empty(1))
        counts.append(counter.get_total_flops())
    assert counts[0] > 3.5 * counts[1] > 12 * counts[2]


@pytest.mark.parametrize("levels", [0, 1, 2])
@pytest.mark.parametrize("multipliers", [(1,), (1, 2), (1, 1, 2)])
def test_output_has_the_shape_of_the_state(levels, multipliers):
    config = small(levels, multipliers=multipliers)
    x, condition, t = inputs(config)
    assert UNet(config)(x, condition, t).shape == (2, 4**levels, 8, 8)


def test_blocks_and_attention_are_free():
    for changes in ({"blocks": 3}, {"attention": False}, {"base_channels": 8, "head_channels": 2}):
        config = small(**changes)
        x, condition, t = inputs(config)
        assert random_network(config)(x, condition, t).shape == x.shape


def test_output_at_the_start_is_zero():
    config = small()
    assert UNet(config)(*inputs(config)).abs().max() == 0


@torch.no_grad()
def test_output_depends_on_state_condition_and_time():
    config = small()
    network = random_network(config)
    x, condition, t = inputs(config)
    reference = network(x, condition, t)
    others = (
        network(x + 0.1, condition, t),
        network(x, condition + 0.1, t),
        network(x, condition, t + 0.1),
        network(condition, x, t),
    )
    for other in others:
        assert (other - reference).abs().max() > 1e-3


def test_norms_have_groups_of_as_many_channels_at_every_width(shipped):
    def sizes(network):
        norms = [m for m in network.modules() if isinstance(m, torch.nn.GroupNorm)]
        assert all(m.num_groups > 1 for m in norms)
        return {m.num_channels // m.num_groups for m in norms}

    assert sizes(shipped) == {8}
    assert sizes(UNet(NetworkConfig(norm_channels=16))) == {16}
    assert sizes(UNet(small(multipliers=(1, 3)))) == {2, 4, 8}  # 4, 12, 8 and 16 to 24 channels


@torch.no_grad()
def test_samples_of_a_batch_do_not_see_each_other():
    config = small()
    network = random_network(config)
    x, condition, t = inputs(config, batch=3)
    together = network(x, condition, t)
    for i in range(3):
        alone = network(x[i : i + 1], condition[i : i + 1], t[i : i + 1])
        torch.testing.assert_close(alone[0], together[i], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(network(x, condition, t[:1]), together, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_attention_reaches_the_whole_tile_and_convolutions_do_not():
    reach = {}
    for attention in (True, False):
        config = small(multipliers=(1,), attention=attention)
        network = random_network(config)
        # Group norm couples all positions: fix its statistics to see the rest.
        for module in network.modules():
            if isinstance(module, torch.nn.GroupNorm):
                module.forward = lambda h: h
        x, condition, t = inputs(config, batch=1, size=40)
        changed = x.clone()
        changed[:, :, :2, :2] += 1
        difference = network(changed, condition, t) - network(x, condition, t)
        reach[attention] = float(difference[..., -4:, -4:].abs().max())
    assert reach[False] == 0 and reach[True] > 0


def test_close_times_have_close_embeddings_and_far_times_do_not():
    torch.manual_seed(0)
    embed = TimeEmbedding(64, 64)
    t = torch.tensor([0.5, 0.5001, 0.6, 0.9])
    out = embed(t).detach()
    near, far = (out[1] - out[0]).norm(), (out[2:] - out[0]).norm(dim=1)
    assert 0 < near < far.min()


@pytest.mark.parametrize(
    "settings",
    [
        {"base_channels": 0},
        {"base_channels": -8},
        {"base_channels": 5, "attention": False},  # sinusoids come in pairs
        {"base_channels": 2, "attention": False},
        {"base_channels": 6, "attention": False},  # norms of one channel do not hear the time
        {"base_channels": 30, "attention": False},
        {"norm_channels": 1},
        {"norm_channels": 3},
        {"multipliers": ()},
        {"multipliers": (1, 0)},
        {"multipliers": (1, -1)},
        {"blocks": 0},
        {"norm_channels": 0},
        {"head_channels": 0},
        {"head_channels": 48},
    ],
)
def test_settings_no_network_can_have_are_input_errors(settings):
    with pytest.raises(InputError) as caught:
        NetworkConfig(**settings)
    assert caught.value.exit_code == 2
