"""Signed bundles run where signatures are asked for, and no others."""

import shutil
import subprocess

import pytest
from conftest import SAMPLE, TRUTH, edit_manifest

from wdm_runtime.bench.processes import measure_opening
from wdm_runtime.bench.turns import choices_of
from wdm_runtime.bundle import Bundle
from wdm_runtime.errors import BundleError, EngineError, InputError, MissingDependencyError
from wdm_runtime.manifest import MANIFEST_NAME
from wdm_runtime.signing import REQUIRE_VARIABLE, SIGNATURE_NAME, check_signature, sign

pytest.importorskip("cryptography", reason="needs the extra 'sign'")


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Two pairs, made as SECURITY.md says: name -> (private, public)."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    folder = tmp_path_factory.mktemp("keys")
    pairs = {}
    for name in ("ours", "theirs"):
        private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
        make = ["openssl", "genpkey", "-algorithm", "ed25519", "-out", private]
        subprocess.run(make, check=True)
        subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
        pairs[name] = private, public
    return pairs


def signed(folder, private):
    (folder / SIGNATURE_NAME).write_bytes(sign((folder / MANIFEST_NAME).read_bytes(), private))
    return folder


def test_a_signed_bundle_opens_for_its_key_alone(tiny_copy, keys):
    (ours, public), (_, other) = keys["ours"], keys["theirs"]
    signed(tiny_copy, ours)
    assert Bundle.open(tiny_copy, public).sha256 == Bundle.open(tiny_copy).sha256
    with pytest.raises(BundleError, match=r"is no signature of this manifest.*right key"):
        Bundle.open(tiny_copy, other)


def test_any_other_byte_of_the_manifest_is_refused_before_it_is_parsed(tiny_copy, keys):
    private, public = keys["ours"]
    signed(tiny_copy, private)
    (tiny_copy / MANIFEST_NAME).write_bytes(b"{ not even JSON")
    with pytest.raises(BundleError, match="is no signature of this manifest"):
        Bundle.open(tiny_copy, public)


def test_another_bundles_signature_is_refused(tiny, tiny_copy, tmp_path, keys):
    private, public = keys["ours"]
    edit_manifest(tiny_copy, name="another")
    other = signed(shutil.copytree(tiny, tmp_path / "other"), private)
    shutil.copy(other / SIGNATURE_NAME, tiny_copy)
    with pytest.raises(BundleError, match="is no signature of this manifest"):
        Bundle.open(tiny_copy, public)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: None, "No such file"),
        (lambda text: b"", "0 bytes of signature"),
        (lambda text: text[:40] + b"\n", "30 bytes of signature"),
        (lambda text: text[:-5] + b"\n", "63 bytes of signature"),
        (lambda text: text[:-3] + b"\n", "is no signature"),
        (lambda text: text + text, "is no signature"),
        (lambda text: b"\xff" * 10_000_000, "is no signature"),
        (lambda text: b"A" * 86 + b"==\n", "is no signature of this manifest"),
    ],
)
def test_missing_truncated_and_altered_signatures(tiny_copy, keys, damage, message):
    private, public = keys["ours"]
    path = signed(tiny_copy, private) / SIGNATURE_NAME
    text = damage(path.read_bytes())
    path.unlink() if text is None else path.write_bytes(text)
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.open(tiny_copy, public)
    assert caught.value.exit_code == 3 and "Fetch the bundle" in str(caught.value)


def test_what_is_signed_is_no_bare_manifest(tiny_copy, keys):
    """A signature made by another tool over the same file is not ours."""
    import base64

    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    private, public = keys["ours"]
    raw = (tiny_copy / MANIFEST_NAME).read_bytes()
    bare = load_pem_private_key(private.read_bytes(), None).sign(raw)
    (tiny_copy / SIGNATURE_NAME).write_bytes(base64.b64encode(bare))
    with pytest.raises(BundleError, match="is no signature of this manifest"):
        check_signature(raw, tiny_copy, public)


def test_keys_of_another_kind_are_refused(tiny_copy, keys, tmp_path):
    private, public = keys["ours"]
    rsa = tmp_path / "rsa.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "rsa", "-out", rsa], check=True)
    locked = tmp_path / "locked.pem"
    lock = ["openssl", "pkey", "-in", private, "-aes256", "-passout", "pass:x", "-out", locked]
    subprocess.run(lock, check=True)
    for key in (rsa, public, locked, tmp_path / "none.pem", tiny_copy / MANIFEST_NAME):
        with pytest.raises(InputError, match="is no private key"):
            sign(b"{}", key)
    for key in (rsa, private, tmp_path / "none.pem", tiny_copy / MANIFEST_NAME):
        with pytest.raises(InputError, match="is no public key"):
            Bundle.open(tiny_copy, key)


@pytest.mark.parametrize("unattended", [False, True])
@pytest.mark.parametrize(
    "arguments",
    [
        ["infer", str(SAMPLE), "--steps", "3", "--no-pixel-probe", "--overwrite", "-o", "o.nc"],
        ["selftest", "--engine", "ort-cpu"],
        ["info", "{bundle}"],
        ["build-engine"],
        ["bench", "--engines", "ort-cpu/fp32", "--calls", "1"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_commands_refuse_what_is_not_signed(
    run, tiny_copy, keys, monkeypatch, arguments, unattended
):
    private, public = keys["ours"]
    arguments = [part.format(bundle=tiny_copy) for part in arguments]
    if arguments[0] != "info":
        arguments += ["--bundle", str(tiny_copy)]
    if unattended:
        monkeypatch.setenv(REQUIRE_VARIABLE, str(public))
    else:
        arguments += ["--require-signature", str(public)]
    code, _, errors = run(*arguments)
    assert code == 3 and "is no signature" in errors
    signed(tiny_copy, private)
    code, _, errors = run(*arguments)
    assert code == (4 if arguments[0] == "build-engine" else 0), errors  # no GPU here


def test_bench_asks_for_the_signature_of_all_that_it_opens(run, tiny, tiny_copy, keys):
    private, public = keys["ours"]
    signed(tiny_copy, private)
    options = "--bundle", tiny_copy, "--require-signature", public
    code, _, errors = run("bench", *options, "--against", tiny)
    assert code == 3 and f"{tiny / SIGNATURE_NAME}: is no signature" in errors
    (choice,), _ = choices_of("ort-cpu/fp32")
    with pytest.raises(EngineError, match=r"manifest\.sig: is no signature"):
        measure_opening(tiny, choice, None, public)  # as if it had changed since


def test_verify_says_what_was_checked(run, tiny_copy, keys):
    private, public = keys["ours"]
    assert run("verify", tiny_copy)[0] == 0
    assert run("verify", tiny_copy, "--key", public)[0] == 3
    signed(tiny_copy, private)
    code, out, _ = run("verify", tiny_copy, "--key", public)
    assert code == 0 and f"signed for {public}" in out
    path = tiny_copy / "dwt.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    code, _, errors = run("verify", tiny_copy, "--key", public)
    assert code == 3 and "SHA-256" in errors


def test_an_empty_variable_is_not_taken_for_unset(tiny, monkeypatch):
    monkeypatch.setenv(REQUIRE_VARIABLE, "")
    with pytest.raises(InputError, match="is empty"):
        Bundle.open(tiny)


def test_without_the_library_nothing_passes(tiny_copy, keys, monkeypatch):
    private, public = keys["ours"]
    signed(tiny_copy, private)
    monkeypatch.setitem(__import__("sys").modules, "cryptography", None)
    with pytest.raises(MissingDependencyError, match=r"'\.\[sign\]' in the clone"):
        Bundle.open(tiny_copy, public)
    assert Bundle.open(tiny_copy).path == tiny_copy


@pytest.mark.parametrize("command", ["check", "evaluate"])
def test_commands_of_the_export_refuse_what_is_not_signed(
    tiny_copy, keys, monkeypatch, capsys, command
):
    cli = pytest.importorskip("wdm_export.cli", reason="needs the extra 'export'")
    pytest.importorskip("torch", reason="needs the extra 'export'")
    private, public = keys["ours"]
    monkeypatch.setenv(REQUIRE_VARIABLE, str(public))
    files = [str(TRUTH)] if command == "evaluate" else []
    monkeypatch.setattr("sys.argv", ["wdm-export", command, str(tiny_copy), *files])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 3 and "is no signature" in capsys.readouterr().err
    if command == "check":
        signed(tiny_copy, private)
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code


def test_the_command_that_signs_checks_first(tiny_copy, keys, monkeypatch, capsys):
    cli = pytest.importorskip("wdm_export.cli", reason="needs the extra 'export'")
    pytest.importorskip("torch", reason="needs the extra 'export'")
    private, public = keys["ours"]
    line = ["wdm-export", "sign", str(tiny_copy), "--key", str(private)]
    monkeypatch.setattr("sys.argv", line)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code and "Wrote" in capsys.readouterr().out
    assert Bundle.open(tiny_copy, public)
    (tiny_copy / "dwt.onnx").write_bytes(b"another")
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 3
