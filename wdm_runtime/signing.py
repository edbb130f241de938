"""Detached Ed25519 signatures over a manifest's exact bytes, which hash every other file.

The signature lies beside the manifest, base64 in one line, and is listed nowhere. What is signed
begins with a prefix of its own, so that no signature made for something else fits.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

from wdm_runtime.errors import BundleError, InputError, require
from wdm_runtime.plain_file import read_plain

SIGNATURE_NAME = "manifest.sig"
REQUIRE_VARIABLE = "WDM_REQUIRE_SIGNATURE"
_PREFIX = b"wdm-edge manifest signature, version 1\0"
_SIGNATURE_BYTES = 64
_MAX_TEXT_BYTES = 200
_MAX_KEY_BYTES = 16 << 10
_HOW = "'openssl genpkey -algorithm ed25519'"


def required_key() -> Path | None:
    """The public key that this machine's bundles have to be signed for, if it asks for one.

    A variable that is set and empty names no key, and is not taken for unset.

    Raises
    ------
    InputError
        The variable is empty.
    """
    text = os.environ.get(REQUIRE_VARIABLE)
    if text == "":
        raise InputError(
            f"{REQUIRE_VARIABLE} is empty; expected the path of a public key. Set it, or unset it "
            "to run unsigned bundles."
        )
    return None if text is None else Path(text)


def sign(manifest: bytes, key: Path) -> bytes:
    """The contents of the signature file for a manifest.

    Raises
    ------
    InputError
        ``key`` is no unencrypted Ed25519 private key in PEM.
    MissingDependencyError
        cryptography is not installed.
    """
    private = _load(key, "private")
    return base64.b64encode(private.sign(_PREFIX + manifest)) + b"\n"


def check_signature(manifest: bytes, folder: Path, key: Path) -> None:
    """Refuse a manifest that is not signed for a public key.

    Raises
    ------
    BundleError
        The folder has no signature, a malformed one, or one of another manifest or key.
    InputError
        ``key`` is no Ed25519 public key in PEM.
    MissingDependencyError
        cryptography is not installed.
    """
    public = _load(key, "public")
    path = folder / SIGNATURE_NAME
    try:
        text = read_plain(path, _MAX_TEXT_BYTES)
        signature = base64.b64decode(text.removesuffix(b"\n"), validate=True)
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{path}: is no signature ({error}); {key} has to have signed this bundle. Fetch the "
            "bundle with its signature, or make one with 'wdm-export sign'."
        ) from error
    if len(signature) != _SIGNATURE_BYTES:
        raise BundleError(
            f"{path}: has {len(signature)} bytes of signature; expected {_SIGNATURE_BYTES}. Fetch "
            "the bundle with its signature, or make one with 'wdm-export sign'."
        )
    from cryptography.exceptions import InvalidSignature

    try:
        public.verify(signature, _PREFIX + manifest)
    except InvalidSignature as error:
        raise BundleError(
            f"{path}: is no signature of this manifest for the key {key}; expected one. Fetch the "
            "bundle from who holds that key, or name the right key."
        ) from error


def _load(path: Path, kind: str) -> Any:
    """An Ed25519 key; ``kind`` is private or public."""
    require("cryptography", "sign", "Signatures")
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    try:
        data = read_plain(path.resolve(), _MAX_KEY_BYTES)
        key: Any
        if kind == "private":
            key = serialization.load_pem_private_key(data, password=None)
            fits = isinstance(key, ed25519.Ed25519PrivateKey)
        else:
            key = serialization.load_pem_public_key(data)
            fits = isinstance(key, ed25519.Ed25519PublicKey)
        if not fits:
            raise ValueError(f"a key of the kind {type(key).__name__}")
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InputError(
            f"{path}: is no {kind} key that can be used ({error}); expected Ed25519 in PEM without "
            f"a password. Make one with {_HOW}: see SECURITY.md."
        ) from error
    return key
