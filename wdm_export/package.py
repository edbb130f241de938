"""From a checkpoint to a checked bundle, and the check of a bundle that exists."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import onnx
import torch
from torch import Tensor

from wdm_export import graphs, parity
from wdm_export.card import model_card
from wdm_export.checkpoint import Checkpoint
from wdm_export.config import NetworkConfig
from wdm_export.golden import golden_file
from wdm_export.step_graph import compare_step, step_tail
from wdm_export.unet import UNet, parameter_count
from wdm_runtime.bundle import Bundle, rewritten, sha256
from wdm_runtime.engines import open_transforms
from wdm_runtime.engines.options import EngineOptions
from wdm_runtime.errors import BundleError, OutputError, ParityError
from wdm_runtime.golden import has_golden
from wdm_runtime.io.atomic import Workspace, publish, whole_file
from wdm_runtime.manifest import (
    GOLDEN_NAME,
    MANIFEST_NAME,
    SCHEMA_VERSION,
    STEP_ROLE,
    FileEntry,
    GraphEntry,
    Manifest,
    TensorSpec,
)
from wdm_runtime.signing import SIGNATURE_NAME, sign
from wdm_runtime.skill import TILE_PX

LICENCE = "Apache-2.0"
CARD_NAME = "MODEL_CARD.md"
_LATENCY_WEIGHT = 0.02

Notify = Callable[[str], None]


def latency_network(config: NetworkConfig) -> UNet:
    """The same network on pixels without attention, untrained, for timing only.

    Parameters of one shape are the same, so that an exporter stores them once, and all are plus or
    minus one value, which compresses to a tenth in a wheel. Engines give every layer its own copy
    of its weights when they load a graph, and the time of a network does not depend on them.
    """
    pixel = replace(config, wavelet=replace(config.wavelet, levels=0), attention=False)
    network = UNet(pixel)
    generator = torch.Generator().manual_seed(0)
    drawn: dict[torch.Size, Tensor] = {}
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.shape not in drawn:
                signs = torch.randint(0, 2, parameter.shape, generator=generator) * 2.0 - 1.0
                drawn[parameter.shape] = (signs * _LATENCY_WEIGHT).half().float()
            parameter.copy_(drawn[parameter.shape])
    return network.eval()


def export_bundle(
    checkpoint: Checkpoint,
    target: str | Path,
    name: str | None = None,
    tile_px: int = TILE_PX,
    overwrite: bool = False,
    notify: Notify = lambda _: None,
) -> tuple[Bundle, list[parity.Comparison]]:
    """Export, check and write a bundle.

    Parameters
    ----------
    checkpoint
        A training checkpoint or released weights; the EMA weights rounded to fp16 are exported.
    target
        The bundle's folder. It is put in place only after every check passed.
    name
        The bundle's name; by default the folder's.
    tile_px
        Fine size of the tiles the score graph takes.
    overwrite
        Whether a bundle that stands there may be replaced.
    notify
        Called with a line about what comes next.

    Raises
    ------
    InputError
        The network cannot halve such tiles.
    ParityError
        A graph differs from its reference by more than the limit.
    OutputError
        The folder exists and is no bundle or may not be replaced, or cannot be written.
    """
    target = Path(target).absolute()
    check_target(target, overwrite)
    checkpoint.model.network.check_edge(tile_px, "--tile")
    released, workspace = checkpoint.released(), Workspace(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        workspace.open()
        folder = workspace.temporary
        folder.mkdir()
        _write(folder, released, name or target.name, tile_px, notify)
        bundle = Bundle.own(folder)
        comparisons = check_bundle(bundle, released, notify)
        parity.require_all(comparisons)
        publish(folder, target, overwrite)
    except OSError as error:
        raise OutputError(
            f"{target}: cannot be written ({error}). Choose another folder with -o."
        ) from error
    finally:
        workspace.close()
    return replace(bundle, path=target), comparisons


def check_target(target: Path, overwrite: bool) -> None:
    """Refuse a folder that must not be replaced, before hours are spent on its contents."""
    if target.exists() and not (overwrite and (target / MANIFEST_NAME).is_file()):
        raise OutputError(
            f"{target}: already exists; expected a new folder, or a bundle and --overwrite. "
            "Choose another with -o."
        )


def _write(folder: Path, released: Checkpoint, name: str, tile_px: int, notify: Notify) -> None:
    """Write every file of a bundle into an empty folder."""
    network, spec = released.network(), released.model.network.wavelet
    entries: dict[str, GraphEntry] = {}

    def add(role: str, model: onnx.ModelProto) -> bytes:
        graphs.label(model, role)
        data = model.SerializeToString()
        (folder / f"{role}.onnx").write_bytes(data)
        entries[role] = graphs.graph_entry(model, f"{role}.onnx", data)
        return data

    def add_network(kind: str, network: UNet, what: str) -> None:
        notify(f"Exporting {what} in fp32")
        data = add(f"{kind}_fp32", graphs.score_graph(network, tile_px, fp16=False))
        notify(f"Exporting {what} in fp16")
        half = graphs.score_graph(network, tile_px, fp16=True)
        graphs.share_weights(half, entries[f"{kind}_fp32"].file, data)
        add(f"{kind}_fp16", half)

    add_network("score", network, "the score network")
    tail, entries[STEP_ROLE] = step_tail(entries["score_fp32"])
    (folder / entries[STEP_ROLE].file).write_bytes(tail)
    add("dwt", graphs.dwt_graph(spec))
    add("idwt", graphs.idwt_graph(spec))
    pixel = latency_network(released.model.network)
    add_network("pixel", pixel, "the pixel model for the latency comparison")
    golden = golden_file(network, tile_px)
    (folder / GOLDEN_NAME).write_bytes(golden)
    model = released.model
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name=name,
        licence=LICENCE,
        factor=model.factor,
        tile_px=tile_px,
        domain=released.domain,
        wavelet=spec,
        transform=model.transform,
        schedule=model.schedule,
        prediction="v",
        residual_scale=model.residual_scale,
        condition_scale=model.condition_scale,
        graphs=entries,
        files=(_entry(GOLDEN_NAME, golden),),
        training={
            "network": asdict(model.network),
            "parameters": parameter_count(network),
            "steps": sum(run.step for run in released.runs),
            "seconds": round(sum(run.seconds for run in released.runs), 1),
            "runs": [asdict(run) for run in released.runs],
            "sources": list(released.sources),
        },
        turns=released.runs[-1].training.turns,
    )
    write_manifest(folder, manifest)


def _entry(file: str, data: bytes) -> FileEntry:
    return FileEntry(file, sha256(data), len(data))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the model card and the manifest that hashes it, into a folder nobody reads yet."""
    card = model_card(manifest).encode()
    (folder / CARD_NAME).write_bytes(card)
    others = [entry for entry in manifest.files if entry.file != CARD_NAME]
    manifest = replace(manifest, files=(_entry(CARD_NAME, card), *others))
    (folder / MANIFEST_NAME).write_text(manifest.to_json())


def rewrite_manifest(bundle: Bundle, manifest: Manifest) -> str:
    """Give a bundle another manifest and card, both at once; a signature is no longer one.

    Returns
    -------
    A line that says what the bundle's SHA-256 is now, and that a signature is gone.

    Raises
    ------
    OutputError
        The folder cannot be written beside.
    """
    target = bundle.path.resolve()
    signed = (target / SIGNATURE_NAME).exists()
    with whole_file(target) as folder:
        shutil.copytree(target, folder, ignore=shutil.ignore_patterns(SIGNATURE_NAME))
        write_manifest(folder, manifest)
    # By the resolved path: a current folder that was replaced is still the old one as ".".
    return rewritten(bundle.path, Bundle.own(target).sha256, signed)


def sign_bundle(bundle: Bundle, key: Path) -> Path:
    """Check every file of a bundle, then write the signature beside its manifest.

    Raises
    ------
    BundleError
        A file is missing or altered.
    InputError
        ``key`` is no private key that signs.
    OutputError
        The signature cannot be written.
    """
    bundle.verify()
    raw = (bundle.path / MANIFEST_NAME).read_bytes()
    if sha256(raw) != bundle.sha256:
        raise BundleError(
            f"{bundle.path}: its manifest changed since it was checked; expected it to stay. Sign "
            "it when nobody writes to it."
        )
    text, target = sign(raw, key), bundle.path / SIGNATURE_NAME
    with whole_file(target) as temporary:
        temporary.write_bytes(text)
    return target


def check_bundle(
    bundle: Bundle, weights: Checkpoint | None, notify: Notify = lambda _: None
) -> list[parity.Comparison]:
    """Compare each graph of a bundle with NumPy, two wavelet libraries, and torch.

    Without the weights it was exported from, the score graphs are compared with the golden outputs
    torch gave at the export, and with each other.

    Raises
    ------
    BundleError
        A file is missing or altered.
    ParityError
        A graph is malformed. Differences are returned, for `parity.require_all` to judge.
    """
    manifest = bundle.manifest
    bundle.verify()
    spec, size = manifest.wavelet, manifest.tile_px // manifest.wavelet.stride
    subbands = {"score": (spec.subbands, size), "pixel": (1, manifest.tile_px)}
    for role, entry in manifest.graphs.items():
        if role == STEP_ROLE:  # no graph by itself: compared below
            continue
        notify(f"Checking {entry.file}")
        expected = entry.inputs
        if role.partition("_")[0] in subbands:
            channels, edge = subbands[role.partition("_")[0]]
            tile: tuple[int | str, ...] = ("batch", channels, edge, edge)
            expected = (
                TensorSpec("x", "float32", tile),
                TensorSpec("condition", "float32", tile),
                TensorSpec("t", "float32", (1,)),
            )
        parity.check_form(role, onnx.load_from_string(bundle.graph(role)), expected)
    if weights is None:
        comparisons = _compare_scores(bundle, notify)
    else:
        comparisons = _compare_with_torch(bundle, weights, notify)
    if STEP_ROLE in manifest.graphs:
        notify("Comparing the fused step with NumPy's")
        comparisons.append(compare_step(bundle))
    dwt, idwt = open_transforms(bundle, "ort-cpu", EngineOptions())
    return comparisons + parity.compare_wavelets(spec, dwt, idwt)


def _compare_with_torch(
    bundle: Bundle, weights: Checkpoint, notify: Notify
) -> list[parity.Comparison]:
    manifest = bundle.manifest
    if weights.model.network.wavelet != manifest.wavelet:
        raise ParityError(
            f"The weights are of a network on {weights.model.network.wavelet}; the bundle's is on "
            f"{manifest.wavelet}. Name the weights it was exported from with --weights."
        )
    network = weights.released().network()
    comparisons = []
    for precision in ("fp32", "fp16"):
        role = f"score_{precision}"
        if role in manifest.graphs:
            notify(f"Comparing {role} with torch")
            comparisons.append(
                parity.compare_score(
                    network, bundle.graph(role), manifest.graphs[role], precision == "fp16"
                )
            )
    return comparisons


def _compare_scores(bundle: Bundle, notify: Notify) -> list[parity.Comparison]:
    comparisons = []
    if has_golden(bundle):
        notify("Comparing score_fp32 with golden outputs")
        comparisons.append(parity.compare_golden(bundle))
    if "score_fp16" in bundle.manifest.graphs:
        notify("Comparing score_fp16 with score_fp32")
        comparisons.append(parity.compare_precisions(bundle))
    return comparisons
