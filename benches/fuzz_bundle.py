"""Do damaged bundles give anything but typed errors, and do they cost time or memory?

Mutates the manifest, a graph and the golden file of the tiny bundle and reads each result as a run
would, without an engine. Anything that is not a BundleError ends the bench with its seed.

    python benches/fuzz_bundle.py
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import re
import resource
import shutil
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from wdm_runtime.bundle import Bundle, sha256
from wdm_runtime.errors import BundleError
from wdm_runtime.manifest import GOLDEN_NAME, MANIFEST_NAME, FileEntry
from wdm_runtime.onnx_gate import check_graph
from wdm_runtime.onnx_weights import with_weights
from wdm_runtime.selftest import read_golden

TINY = Path(__file__).resolve().parent.parent / "models" / "tiny"
# What breaks parsers: lengths and numbers at their limits, brackets, ends of texts.
_TOKENS = (
    *(b"\x00", b"\xff", b"\x80", b"\xff" * 9 + b"\x01", b"\xff\xff\xff\xff\x07", b"\x7f"),
    *(b"[" * 2000, b'{"a":' * 500, b"NaN", b"1e999", b"9" * 5000, b'"', b"\\", b"null", b"-1"),
    *(b"2147483648", b"../../x", b"\\ud800", b"true", b"0.0", b"[]", b"{}", b",", b":"),
)
# What a value of a manifest must not be, most of it.
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**53, 10**17, 1e308, -1e308, 5e-324, "", "x", "\0"),
    *("../x", "con", "x" * 10_000, "manifest.json", [], {}, [[]], [1] * 1000, ["x"], {"": {}}),
)


def mutated(data: bytes, draw: random.Random) -> bytes:
    """One to four changes: bytes flipped, cut, repeated, moved, or tokens put in."""
    out = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(out) + 1)
        size = draw.choice((1, 1, 2, 8, 64, len(out) // 4))
        match draw.randrange(6):
            case 0 if out:
                out[min(at, len(out) - 1)] ^= 1 << draw.randrange(8)
            case 1:
                del out[at : at + size]
            case 2:
                out[at:at] = out[at : at + size] * draw.choice((1, 2, 50))
            case 3:
                out[at : at + draw.choice((0, 0, 4))] = draw.choice(_TOKENS)
            case 4:
                del out[at:]
            case _:
                start = draw.randrange(len(out) + 1)
                out[at:at] = out[start : start + size]
    return bytes(out)


def other_values(data: bytes, draw: random.Random) -> bytes:
    """A manifest that is JSON still, with one to three values of another kind or size."""
    values = json.loads(data)
    for _ in range(draw.randint(1, 3)):
        at: Any = values
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                break
            key = draw.choice(keys)
            if isinstance(at[key], (dict, list)) and draw.random() < 0.8:
                at = at[key]
                continue
            if draw.random() < 0.2:
                del at[key]
            else:
                at[key] = draw.choice(_VALUES)
            break
    return json.dumps(values).encode()


def other_bytes(data: bytes, draw: random.Random) -> bytes:
    """One to three bytes changed in place: lengths still fit, so that readers get far."""
    out = bytearray(data)
    for _ in range(draw.randint(1, 3)):
        out[draw.randrange(len(out))] = draw.choice((0, 1, 2, 7, 10, 0x7F, 0x80, 0xFF))
    return bytes(out)


def other_arrays(data: bytes, draw: random.Random) -> bytes:
    """A golden file that is an archive still, with one array damaged."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        names = old.namelist()
        damaged = draw.choice(names)
        for name in names:
            raw = old.read(name)
            if name == damaged:  # the header is what is believed
                raw = mutated(raw[:128], draw) + raw[128:]
            new.writestr(name, raw)
    return out.getvalue()


def kind(error: BundleError) -> str:
    """The message without what differs from case to case."""
    text = str(error.__cause__ or error)
    text = re.sub(r"'[^']*'|\"[^\"]*\"|\[.*?\]|\(.*?\)|-?[\d.]+(e[-+]?\d+)?|.*/", "*", text)
    return " ".join(text.split())[:60]


def fuzz(
    name: str,
    data: bytes,
    structured: Callable[[bytes, random.Random], bytes],
    read: Callable[[bytes], object],
    options: argparse.Namespace,
) -> None:
    """Every second input keeps the file's structure."""
    count, seed = options.count, options.seed
    found: Counter[str] = Counter()
    slowest = 0.0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        draw = random.Random(f"{seed} {name} {number}")
        case = (structured if number % 2 else mutated)(data, draw)
        began = time.process_time()  # others may use this machine
        try:
            read(case)
            found["read"] += 1
        except BundleError as error:
            found[kind(error)] += 1
        except BaseException:
            print(f"{name}: seed {seed}, number {number}")
            raise
        slowest = max(slowest, time.process_time() - began)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(
        f"\n{name}: {count} inputs, {found['read']} still read, {count - found['read']} typed "
        f"errors, nothing else; slowest {1e3 * slowest:.0f} ms of CPU, memory grew by "
        f"{grown / 1024:.0f} MiB"
    )
    for text, times in found.most_common(12):
        print(f"  {times:7d}  {text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000, help="inputs of each kind")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(shutil.copytree(TINY, Path(folder) / "tiny"))
        opened = Bundle.open(bundle)
        golden, path = opened.file(GOLDEN_NAME), bundle / MANIFEST_NAME
        others = tuple(entry for entry in opened.manifest.files if entry.file != GOLDEN_NAME)

        def manifest_of(raw: bytes) -> str:
            path.write_bytes(raw)
            return Bundle.open(bundle).manifest.to_json()

        def golden_of(raw: bytes) -> object:
            """As if the manifest listed it: the hash is right, the contents are not."""
            (bundle / GOLDEN_NAME).write_bytes(raw)
            entry = FileEntry(GOLDEN_NAME, sha256(raw), len(raw))
            manifest = replace(opened.manifest, files=(*others, entry))
            return read_golden(replace(opened, manifest=manifest))

        fuzz("manifest", path.read_bytes(), other_values, manifest_of, options)
        held = opened.graph("score_fp32")

        def graph_of(raw: bytes) -> None:
            check_graph(with_weights(raw, "", {"score_fp32.onnx": held}.get), "")

        for role in ("dwt", "score_fp32", "score_fp16"):
            raw = (bundle / opened.manifest.graphs[role].file).read_bytes()
            fuzz(f"graph {role}", raw, other_bytes, graph_of, options)
        fuzz("golden file", golden, other_arrays, golden_of, options)
    print(f"\nPython on {os.uname().machine}, seed {options.seed}")


if __name__ == "__main__":
    main()
