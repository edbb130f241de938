"""Checkpoints as safetensors with the whole configuration inside; no pickles anywhere.

A training checkpoint holds ``model.*``, ``ema.*``, ``adam.exp_avg.*`` and ``adam.exp_avg_sq.*`` in
fp32. Released weights hold ``ema.*`` alone, in fp16: the model is then defined by those rounded
values. The header's entry ``wdm`` is JSON: format version, model and training configuration, step,
seconds computed, loss curve, the runs before it, and the sources trained on with their domain.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from wdm_export.config import ModelConfig, TrainConfig
from wdm_export.unet import UNet
from wdm_runtime.errors import InputError
from wdm_runtime.io.atomic import whole_file
from wdm_runtime.manifest import Domain
from wdm_runtime.records import build

FORMAT_VERSION = 3  # 3: `norm_channels`, `curve` and `earlier`
_HEADER = "wdm"


Curve = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Run:
    """A training run: how, how far, and its loss.

    ``curve`` has steps and the mean score-matching loss since the point before.
    """

    training: TrainConfig
    step: int
    seconds: float
    curve: Curve

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Run:
        """The inverse of `dataclasses.asdict`."""
        curve = tuple((int(step), float(loss)) for step, loss in values["curve"])
        training = TrainConfig(**values["training"])
        return cls(training, values["step"], values["seconds"], curve)


@dataclass(frozen=True)
class Checkpoint:
    """A model's configuration, the progress of its training and its tensors.

    ``earlier`` are the finished runs whose weights this one began with. ``curve`` is there when a
    run is done; until then its log has it.
    """

    model: ModelConfig
    training: TrainConfig
    step: int
    seconds: float
    sources: tuple[dict[str, Any], ...]
    domain: Domain
    tensors: dict[str, Tensor]
    curve: Curve = ()
    earlier: tuple[Run, ...] = ()

    @property
    def runs(self) -> tuple[Run, ...]:
        """All training that led to these tensors, in order."""
        return (*self.earlier, Run(self.training, self.step, self.seconds, self.curve))

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Tensors below ``prefix.``, with the prefix taken off."""
        start = prefix + "."
        return {k[len(start) :]: v for k, v in self.tensors.items() if k.startswith(start)}

    @property
    def resumable(self) -> bool:
        """Whether the optimiser's state is there."""
        return any(name.startswith("adam.") for name in self.tensors)

    def network(self) -> UNet:
        """The network with the EMA weights, in fp32 and evaluation mode."""
        network = UNet(self.model.network)
        network.load_state_dict({k: v.float() for k, v in self.group("ema").items()})
        return network.eval()

    def released(self) -> Checkpoint:
        """The EMA weights in fp16 alone."""
        tensors = {f"ema.{k}": v.half() for k, v in self.group("ema").items()}
        return replace(self, tensors=tensors)

    def save(self, path: Path) -> None:
        """Write atomically: the old file stays whole until the new one is complete.

        Raises
        ------
        OutputError
            The file system refuses.
        """
        header = {
            "format": FORMAT_VERSION,
            "model": asdict(self.model),
            "training": asdict(self.training),
            "step": self.step,
            "seconds": self.seconds,
            "curve": self.curve,
            "earlier": [asdict(run) for run in self.earlier],
            "sources": list(self.sources),
            "domain": asdict(self.domain),
        }
        tensors = {k: v.detach().contiguous() for k, v in self.tensors.items()}
        with whole_file(path) as temporary:
            try:
                save_file(tensors, temporary, metadata={_HEADER: json.dumps(header)})
            except SafetensorError as error:  # what it makes of a full disk
                raise OSError(str(error)) from error

    @classmethod
    def load(cls, path: str | Path) -> Checkpoint:
        """Read a checkpoint.

        Raises
        ------
        InputError
            Not safetensors, no configuration inside, or another format version.
        """
        path = Path(path)
        try:
            with safe_open(path, "pt") as file:
                header = json.loads((file.metadata() or {})[_HEADER])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if header["format"] != FORMAT_VERSION:
                raise InputError(
                    f"{path}: checkpoint format is {header['format']}; expected "
                    f"{FORMAT_VERSION}. Use the version of wdm-edge that wrote it."
                )
            return cls(
                build(ModelConfig, header["model"], "model"),
                TrainConfig(**header["training"]),
                header["step"],
                header["seconds"],
                tuple(header["sources"]),
                Domain(**header["domain"]),
                tensors,
                *_progress(header),
            )
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            raise InputError(
                f"{path}: is no checkpoint of this project ({error!r}); expected safetensors "
                "written by 'wdm-export train'. Check the path."
            ) from error


def _progress(header: dict[str, Any]) -> tuple[Curve, tuple[Run, ...]]:
    own, *earlier = (Run.from_dict(run) for run in (header, *header["earlier"]))
    return own.curve, tuple(earlier)


def optimizer_tensors(optimizer: torch.optim.AdamW, names: list[str]) -> dict[str, Tensor]:
    """AdamW's moments by parameter name."""
    state = optimizer.state_dict()["state"]
    return {
        f"adam.{moment}.{name}": state[i][moment]
        for i, name in enumerate(names)
        for moment in ("exp_avg", "exp_avg_sq")
        if i in state
    }


def restore_optimizer(
    optimizer: torch.optim.AdamW, names: list[str], checkpoint: Checkpoint
) -> None:
    """Put AdamW's moments back, all at the checkpoint's step."""
    moments = checkpoint.group("adam")
    state = optimizer.state_dict()
    state["state"] = {
        i: {
            "step": torch.tensor(float(checkpoint.step)),
            "exp_avg": moments[f"exp_avg.{name}"],
            "exp_avg_sq": moments[f"exp_avg_sq.{name}"],
        }
        for i, name in enumerate(names)
    }
    optimizer.load_state_dict(state)
