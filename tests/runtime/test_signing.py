"""Signatures: what a key signed is used, and nothing else is."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from gpu import Gpu

import calipso_runtime
from calipso_runtime import SignatureError, UsageError
from calipso_runtime.bundle import MANIFEST_FILE, file_entry, open_bundle
from calipso_runtime.cli import calipso
from calipso_runtime.engines.build import build
from calipso_runtime.engines.options import BatchRange, BuildOptions
from calipso_runtime.graph_file import MODEL_FILE
from calipso_runtime.manifest import read_manifest, write_manifest
from calipso_runtime.signing import read_private_key, read_public_key, signature_path

pytest.importorskip("cryptography", reason="signatures need calipso[sign]")

PASSPHRASE = "correct horse"  # noqa: S105 - of a key that lives for one test


def openssl(*arguments: object) -> None:
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("no openssl: keys cannot be made as users make them")
    subprocess.run([program, *map(str, arguments)], check=True, capture_output=True)


def make_keys(folder: Path, name: str = "ours", algorithm: str = "ed25519") -> tuple[Path, Path]:
    private, public = folder / f"{name}-private.pem", folder / f"{name}-public.pem"
    openssl("genpkey", "-algorithm", algorithm, "-out", private)
    openssl("pkey", "-in", private, "-pubout", "-out", public)
    return private, public


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def signed(own: Path, keys: tuple[Path, Path]) -> Path:
    sign(own, keys[0])
    return own


def run(*arguments: object, **options: object) -> Result:
    return CliRunner().invoke(calipso, [str(argument) for argument in arguments], **options)


def sign(bundle: Path, private: Path) -> None:
    result = run("sign", bundle, "--key", private)
    assert result.exit_code == 0, result.output


def test_a_signed_bundle_answers_where_its_signature_is_required(
    signed: Path, keys: tuple[Path, Path], photo: Path
) -> None:
    with calipso_runtime.load(signed, backend="ort", require_signature=keys[1]) as classifier:
        assert len(classifier.classify(photo)) == 5


def test_openssl_verifies_what_calipso_signed(signed: Path, keys: tuple[Path, Path]) -> None:
    manifest = signed / MANIFEST_FILE
    options = ("-verify", "-pubin", "-inkey", keys[1], "-rawin", "-in", manifest)
    openssl("pkeyutl", *options, "-sigfile", signature_path(manifest))


def test_calipso_verifies_what_openssl_signed(own: Path, keys: tuple[Path, Path]) -> None:
    manifest = own / MANIFEST_FILE
    openssl("pkeyutl", "-sign", "-inkey", keys[0], "-rawin", "-in", manifest, "-out", signature_path(manifest))

    assert open_bundle(own, require_signature=keys[1]).signed_by is not None


def test_a_manifest_edited_with_all_its_hashes_right_is_refused(signed: Path, keys: tuple[Path, Path]) -> None:
    manifest = read_manifest(signed / MANIFEST_FILE)
    model = signed / MODEL_FILE
    model.write_bytes(model.read_bytes() + b"\0")
    files = {**manifest.files, MODEL_FILE: file_entry(model)}
    write_manifest(signed / MANIFEST_FILE, type(manifest)(**{**vars(manifest), "files": files}))
    open_bundle(signed)

    with pytest.raises(SignatureError, match="changed after it was signed, or another key"):
        open_bundle(signed, require_signature=keys[1])


def test_nothing_of_a_manifest_is_read_before_its_signature(signed: Path, keys: tuple[Path, Path]) -> None:
    (signed / MANIFEST_FILE).write_text('{"schema_version": 99}')

    with pytest.raises(SignatureError, match="is no signature of"):
        open_bundle(signed, require_signature=keys[1])


def test_a_graph_edited_under_a_signed_manifest_is_refused(signed: Path, keys: tuple[Path, Path]) -> None:
    model = signed / MODEL_FILE
    model.write_bytes(model.read_bytes()[:-1] + b"\0")

    with pytest.raises(calipso_runtime.BundleCorruptError, match=r"model\.onnx was changed"):
        open_bundle(signed, require_signature=keys[1])


def test_hashes_of_a_signed_bundle_are_never_remembered_ones(
    signed: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from calipso_runtime import bundle

    monkeypatch.setattr(bundle, "remembered_sha256_of", lambda path: pytest.fail(f"{path} was not hashed"))

    assert open_bundle(signed, remember=True, require_signature=keys[1]).signed_by is not None


def test_a_bundle_that_nobody_signed_is_refused(own: Path, keys: tuple[Path, Path]) -> None:
    with pytest.raises(SignatureError, match=r"is not signed \(.*manifest\.json\.sig is not there\)"):
        open_bundle(own, require_signature=keys[1])


@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"\0" * 63, b"\xff" * 65])
def test_bytes_that_are_no_signature_are_refused(signed: Path, keys: tuple[Path, Path], content: bytes) -> None:
    signature_path(signed / MANIFEST_FILE).write_bytes(content)

    with pytest.raises(SignatureError, match="is no signature of"):
        open_bundle(signed, require_signature=keys[1])


def test_a_signature_by_another_key_is_refused(signed: Path, tmp_path: Path) -> None:
    _, other = make_keys(tmp_path, "other")

    with pytest.raises(SignatureError, match=r"other-public\.pem"):
        open_bundle(signed, require_signature=other)


def test_a_bare_graph_cannot_pass_for_signed(signed: Path, keys: tuple[Path, Path]) -> None:
    with pytest.raises(SignatureError, match=r"bare graph.*give the bundle's directory"):
        open_bundle(signed / MODEL_FILE, require_signature=keys[1])


def test_a_key_of_another_algorithm_is_refused_by_name(own: Path, tmp_path: Path) -> None:
    private, public = make_keys(tmp_path, "agreement", "x25519")

    with pytest.raises(UsageError, match=r"agreement-public\.pem holds a key of another algorithm"):
        read_public_key(public)
    assert "another algorithm: expected Ed25519" in run("sign", own, "--key", private).stderr


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"])
def test_a_file_that_is_no_key_is_refused(own: Path, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(content)

    with pytest.raises(UsageError, match="holds no public key in PEM"):
        open_bundle(own, require_signature=path)
    with pytest.raises(UsageError, match="holds no private key in PEM"):
        read_private_key(path, lambda: "")


def test_a_key_that_is_not_there_is_bad_usage(own: Path, tmp_path: Path) -> None:
    result = run("inspect", own, "--require-signature", tmp_path / "none.pem")

    assert (result.exit_code, result.stdout) == (2, "")
    assert "none.pem cannot be read: No such file" in result.stderr


def test_a_private_key_can_be_encrypted(own: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    encrypted = tmp_path / "encrypted.pem"
    openssl("pkey", "-in", keys[0], "-aes256", "-passout", f"pass:{PASSPHRASE}", "-out", encrypted)

    wrong = run("sign", own, "--key", encrypted, input="staple\n")
    right = run("sign", own, "--key", encrypted, input=f"{PASSPHRASE}\n")

    assert (wrong.exit_code, right.exit_code) == (2, 0), right.output
    assert "the passphrase is wrong" in wrong.stderr
    assert open_bundle(own, require_signature=keys[1])


def test_a_damaged_bundle_is_not_signed(own: Path, keys: tuple[Path, Path]) -> None:
    (own / MODEL_FILE).write_bytes(b"")

    assert run("sign", own, "--key", keys[0]).exit_code == 1
    assert not signature_path(own / MANIFEST_FILE).exists()


def test_without_cryptography_the_extra_is_named(signed: Path, keys: tuple[Path, Path]) -> None:
    code = f"""
import sys
sys.modules["cryptography"] = None
import calipso_runtime
try:
    calipso_runtime.load({str(signed)!r}, backend="ort", require_signature={str(keys[1])!r})
except calipso_runtime.SignatureError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "pip install 'calipso[sign]'" in result.stdout


@pytest.mark.parametrize("command", ["classify", "check", "inspect"])
def test_every_command_that_reads_a_bundle_can_require_a_signature(
    checkable: Path, keys: tuple[Path, Path], photo: Path, tmp_path: Path, command: str
) -> None:
    bundle = Path(shutil.copytree(checkable, tmp_path / "bundle"))
    arguments = [command, bundle, *([photo] if command == "classify" else []), "--require-signature", keys[1]]
    unsigned = run(*arguments)
    sign(bundle, keys[0])

    assert (unsigned.exit_code, unsigned.stdout) == (1, "")
    assert "is not signed" in unsigned.stderr
    assert run(*arguments).exit_code == 0


def test_inspect_tells_a_verified_signature_from_one_that_only_is_there(own: Path, keys: tuple[Path, Path]) -> None:
    before = run("inspect", own).stdout
    sign(own, keys[0])

    assert before.rstrip().splitlines()[-1].split() == ["signature", "none"]
    assert "not verified: manifest.json.sig is there" in run("inspect", own).stdout
    # A long path goes on in a line of its own.
    verified = run("inspect", own, "--require-signature", keys[1]).stdout
    assert "verified: by" in verified
    assert "not verified" not in verified


def quiet(what: str, done: int, total: int) -> None:
    pass


@pytest.fixture
def engine(gpu: Gpu, own: Path, keys: tuple[Path, Path]) -> Path:
    """The record of a signed engine in a signed bundle, on stand-ins for driver and TensorRT."""
    built = build(own, BuildOptions(profiles=(BatchRange(least=1, best=1, most=4),)), report=quiet)
    sign(own, keys[0])
    return built.plan.record_path


def load_engine(bundle: Path, key: Path) -> None:
    calipso_runtime.load(bundle, backend="tensorrt", require_signature=key).close()


def test_a_signed_engine_is_loaded(engine: Path, own: Path, keys: tuple[Path, Path]) -> None:
    load_engine(own, keys[1])


def test_an_engine_that_nobody_signed_is_refused(engine: Path, own: Path, keys: tuple[Path, Path]) -> None:
    signature_path(engine).unlink()

    with pytest.raises(SignatureError, match=f"{engine.name} is not signed"):
        load_engine(own, keys[1])


def test_an_engine_built_after_the_signature_is_refused(engine: Path, own: Path, keys: tuple[Path, Path]) -> None:
    build(own, BuildOptions(profiles=(BatchRange(least=1, best=2, most=8),)), report=quiet)

    with pytest.raises(SignatureError, match="changed after it was signed"):
        load_engine(own, keys[1])


def test_a_record_edited_with_its_hash_right_is_refused(engine: Path, own: Path, keys: tuple[Path, Path]) -> None:
    from calipso_runtime.engines import plans

    document = json.loads(engine.read_text())
    del document["sha256"]
    document["plan"]["sha256"] = "0" * 64
    engine.write_text(json.dumps({**document, "sha256": plans._digest(document)}))
    plans.read_plan(engine)

    with pytest.raises(SignatureError, match="is no signature of"):
        load_engine(own, keys[1])


def test_a_plan_edited_under_a_signed_record_is_refused(engine: Path, own: Path, keys: tuple[Path, Path]) -> None:
    (plan,) = engine.parent.glob("*.plan")
    plan.write_bytes(plan.read_bytes()[:-1] + b"\0")

    with pytest.raises(calipso_runtime.BundleCorruptError, match=r"\.plan was changed"):
        load_engine(own, keys[1])


def test_an_edited_plan_is_not_signed(engine: Path, own: Path, keys: tuple[Path, Path]) -> None:
    (plan,) = engine.parent.glob("*.plan")
    plan.write_bytes(b"")

    result = run("sign", own, "--key", keys[0])

    assert result.exit_code == 1
    assert "truncated or was edited" in result.stderr
