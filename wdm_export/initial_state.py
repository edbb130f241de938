"""What a training run begins with: random weights, or the released ones of a run before."""

from __future__ import annotations

from dataclasses import replace

from wdm_export.checkpoint import Checkpoint
from wdm_export.config import DEFAULT_TRANSFORM, ModelConfig, NetworkConfig, TrainConfig
from wdm_export.crops import Coefficients, crop_samplers, measure_scales
from wdm_export.data import PatchStore, joined
from wdm_export.parallel import Processes
from wdm_runtime.diffusion import VPSchedule
from wdm_runtime.errors import InputError
from wdm_runtime.grid import same_spacing
from wdm_runtime.transform import PrecipTransform


def untrained(
    store: PatchStore,
    network: NetworkConfig,
    config: TrainConfig,
    transform: PrecipTransform | None,
    processes: Processes,
) -> Checkpoint:
    """A model whose scales are those of the store's crops; its weights come from the seed."""
    transform = transform or DEFAULT_TRANSFORM
    samplers = crop_samplers(store, config, network, processes)
    coefficients = Coefficients(network.wavelet, transform)
    scales = measure_scales(samplers, coefficients, config.seed, processes)
    model = ModelConfig(network, store.factor, transform, VPSchedule(), *scales)
    return Checkpoint(model, config, 0, 0.0, (), store.domain, {})


def trained_before(
    weights: Checkpoint,
    store: PatchStore,
    network: NetworkConfig,
    config: TrainConfig,
    transform: PrecipTransform | None,
) -> Checkpoint:
    """The released weights at step 0 of a run of their own; they keep their scales.

    Raises
    ------
    InputError
        They are of another network, factor, transform or spacing.
    """
    if weights.model.network != network:
        raise InputError(
            f"The initial weights are of {weights.model.network}; expected {network}. "
            "Train with the same network settings."
        )
    if weights.model.factor != store.factor:
        raise InputError(
            f"The initial weights refine by a factor of {weights.model.factor}; expected that of "
            f"the store, {store.factor}. Prepare fields with the same --factor."
        )
    if transform not in (None, weights.model.transform):
        raise InputError(
            f"The initial weights are of {weights.model.transform}; expected {transform}. "
            "Train with the same transform."
        )
    if not same_spacing(store.domain.spacing_km, weights.domain.spacing_km):
        raise InputError(
            f"{store.path}: holds patches of {store.domain.spacing_km:g} km cells; the "
            f"initial weights expect {weights.domain.spacing_km:g} km. Prepare fields of "
            "that spacing, or train without --weights."
        )
    return replace(
        weights.released(),
        training=config,
        step=0,
        seconds=0.0,
        domain=joined(weights.domain, store.domain),
        curve=(),
        earlier=weights.runs,
    )
