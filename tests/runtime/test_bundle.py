"""A bundle that was cut, edited or mixed up is refused before an engine sees it."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runtime_samples import CONFIG, MakeBundle, tiny_manifest, write_model

import calipso_runtime
from calipso_runtime import bundle, graph_file, hashes
from calipso_runtime.errors import BundleCorruptError, BundleError, BundleNotFoundError, BundleSchemaError
from calipso_runtime.manifest import SCHEMA_VERSION, Manifest, Preprocess, canonical, read_manifest, write_manifest

REFUSED = (BundleCorruptError, BundleSchemaError)
EXAMPLES = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def rewrite(path: Path, **changes: object) -> None:
    """Edit a manifest and give it the digest of the edited one, as only an exporter would."""
    document = {**json.loads(path.read_text()), **changes}
    document.pop("sha256")
    document["sha256"] = hashlib.sha256(canonical(document).encode()).hexdigest()
    path.write_text(json.dumps(document))


def test_a_whole_bundle_and_its_bare_graph_tell_the_same(tiny: Path) -> None:
    whole, bare = calipso_runtime.load(tiny), calipso_runtime.load(tiny / "model.onnx")

    assert whole.manifest.core() == bare.manifest.core()
    assert (whole.manifest.parity, bare.manifest.parity) == ("passed", "unknown")
    assert whole.labels == bare.labels


def test_a_manifest_survives_json(tmp_path: Path) -> None:
    manifest = tiny_manifest(labels=("Käse", "納豆", 'a "b"\n'), parity="failed")
    write_manifest(tmp_path / "manifest.json", manifest)

    assert read_manifest(tmp_path / "manifest.json") == manifest


def test_nothing_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError, match=r"nowhere does not exist"):
        calipso_runtime.load(tmp_path / "nowhere")
    with pytest.raises(BundleNotFoundError, match=r"it has no manifest\.json"):
        calipso_runtime.load(tmp_path)


def test_a_missing_graph_is_said(own: Path) -> None:
    (own / "model.onnx").unlink()

    with pytest.raises(BundleCorruptError, match=r"model\.onnx is missing"):
        calipso_runtime.load(own)


@EXAMPLES
@given(data=st.data())
@pytest.mark.parametrize("bare", [True, False])
def test_a_graph_cut_anywhere_is_corrupt(tiny: Path, own: Path, bare: bool, data: st.DataObject) -> None:
    content = (tiny / "model.onnx").read_bytes()
    (own / "model.onnx").write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])

    with pytest.raises(BundleCorruptError, match=r"model\.onnx"):
        calipso_runtime.load(own / "model.onnx" if bare else own)


@EXAMPLES
@given(data=st.data())
@pytest.mark.parametrize("bare", [True, False])
def test_a_graph_with_any_byte_changed_is_corrupt(tiny: Path, own: Path, bare: bool, data: st.DataObject) -> None:
    content = bytearray((tiny / "model.onnx").read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (own / "model.onnx").write_bytes(content)

    with pytest.raises(BundleCorruptError, match=r"model\.onnx"):
        calipso_runtime.load(own / "model.onnx" if bare else own)


@EXAMPLES
@given(data=st.data())
def test_a_manifest_with_any_byte_changed_is_refused_or_means_the_same(
    tiny: Path, own: Path, data: st.DataObject
) -> None:
    content = bytearray((tiny / "manifest.json").read_bytes())
    before = json.loads(content)
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (own / "manifest.json").write_bytes(content)
    try:
        same = json.loads(content) == before
    except ValueError:
        same = False

    if same:  # a blank became another blank, "e" an "E"
        assert calipso_runtime.load(own).manifest.parity == "passed"
        return
    with pytest.raises(REFUSED, match=r"manifest\.json"):
        calipso_runtime.load(own)


@EXAMPLES
@given(data=st.data())
def test_a_manifest_cut_anywhere_is_refused(tiny: Path, own: Path, data: st.DataObject) -> None:
    content = (tiny / "manifest.json").read_bytes().rstrip()
    (own / "manifest.json").write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])

    with pytest.raises(REFUSED, match=r"manifest\.json"):
        calipso_runtime.load(own)


def test_every_byte_of_a_manifest_counts(tiny: Path, tmp_path: Path) -> None:
    path, content = tmp_path / "manifest.json", (tiny / "manifest.json").read_bytes()
    missed = []
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << (at % 5)]) + content[at + 1 :])
        try:
            read_manifest(path)
        except REFUSED:
            continue
        missed.append(at)
    assert missed == []


def test_an_edited_label_is_noticed_in_a_bundle(own: Path) -> None:
    path = own / "manifest.json"
    path.write_text(path.read_text().replace("tulip", "thistle"))

    with pytest.raises(BundleCorruptError, match="was edited"):
        calipso_runtime.load(own)


def test_an_edited_label_is_noticed_in_a_bare_graph(own: Path) -> None:
    path = own / "model.onnx"
    path.write_bytes(path.read_bytes().replace(b"tulip", b"tulib"))

    with pytest.raises(BundleCorruptError, match="does not match its own digest"):
        calipso_runtime.load(path)


def test_a_graph_that_calipso_did_not_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.onnx"
    path.write_bytes(b"another exporter's graph")

    with pytest.raises(BundleCorruptError, match="carries no Calipso digest"):
        calipso_runtime.load(path)


@pytest.mark.parametrize("bare", [True, False])
def test_a_newer_schema_is_refused_with_what_to_do(make_bundle: MakeBundle, bare: bool) -> None:
    folder = make_bundle(schema_version=SCHEMA_VERSION + 1)

    with pytest.raises(BundleSchemaError, match=r"schema version 2; this runtime reads up to 1. Upgrade calipso"):
        calipso_runtime.load(folder / "model.onnx" if bare else folder)


def test_a_manifest_of_another_export_is_corrupt(make_bundle: MakeBundle) -> None:
    folder = make_bundle(graph_manifest=tiny_manifest(precision="fp16"))

    with pytest.raises(BundleCorruptError, match="different things about precision"):
        calipso_runtime.load(folder)


def test_a_graph_whose_answer_does_not_fit_the_labels_is_corrupt(make_bundle: MakeBundle) -> None:
    folder = make_bundle(labels=("one", "two"))

    with pytest.raises(BundleCorruptError, match=r"its logits is float32 \[None, 7\].*promises float32 \[None, 2\]"):
        calipso_runtime.load(folder)


def test_a_graph_whose_input_does_not_fit_the_preprocessing_is_corrupt(make_bundle: MakeBundle) -> None:
    folder = make_bundle(preprocess=dataclasses.replace(CONFIG, size=(32, 32)))

    with pytest.raises(BundleCorruptError, match="its image is"):
        calipso_runtime.load(folder)


def test_a_graph_without_logits_is_corrupt(make_bundle: MakeBundle) -> None:
    with pytest.raises(BundleCorruptError, match="its logits is not there"):
        calipso_runtime.load(make_bundle(outputs=("embedding",)))


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": None},
        {"preprocess": {"size": [16, 16]}},
        {"preprocess": {"size": [16], "mean": [0, 0, 0], "std": [1, 1, 1]}},
        {"preprocess": {"size": [16, 16], "mean": [0, 0, 0], "std": [1, 1]}},
        {"preprocess": {"size": [], "mean": [0, 0, 0], "std": [1, 1, 1]}},
        {"preprocess": {"size": ["a", "b"], "mean": [0, 0, 0], "std": [1, 1, 1]}},
        {"preprocess": {"size": [16, 16], "mean": [0, 0, 0], "std": [1, float("nan"), 1]}},
        {"preprocess": {"size": [16, 16], "mean": [0, 0, 0], "std": [1, 1, 1], "resize_mode": "crop"}},
        {"preprocess": {"size": [16, 16], "mean": [0, 0, 0], "std": [1, 1, 1], "surprise": 1}},
        {"model": "tiny"},
        {"files": []},
        {"schema_version": "one"},
    ],
    ids=str,
)
def test_a_manifest_outside_the_schema_is_refused_even_with_a_right_digest(own: Path, changes: dict) -> None:
    rewrite(own / "manifest.json", **changes)

    with pytest.raises(BundleSchemaError, match=r"manifest\.json"):
        calipso_runtime.load(own)


def test_a_key_of_a_later_writer_is_ignored(own: Path) -> None:
    rewrite(own / "manifest.json", surprise=1)

    assert calipso_runtime.load(own).labels[0] == "tulip"


@pytest.mark.parametrize("name", ["../model.onnx", "/etc/passwd", "sub/model.onnx"])
def test_a_manifest_cannot_name_files_outside_the_bundle(make_bundle: MakeBundle, name: str) -> None:
    folder = make_bundle()
    manifest = read_manifest(folder / bundle.MANIFEST_FILE)
    files = {**manifest.files, name: {"sha256": "0" * 64, "bytes": 1}}
    write_manifest(folder / bundle.MANIFEST_FILE, dataclasses.replace(manifest, files=files))

    with pytest.raises(BundleCorruptError, match="no file of the bundle itself"):
        bundle.open_bundle(folder)


def test_a_manifest_that_lists_no_graph_is_corrupt(own: Path) -> None:
    rewrite(own / "manifest.json", files={})

    with pytest.raises(BundleCorruptError, match=r"lists no model\.onnx"):
        calipso_runtime.load(own)


def test_a_bundle_moved_elsewhere_still_opens(tiny: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(tiny, tmp_path / "élsewhere [1]"))

    assert calipso_runtime.load(moved).manifest == calipso_runtime.load(tiny).manifest


def test_a_seal_needs_its_placeholder(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write_model(path, tiny_manifest())

    with pytest.raises(BundleCorruptError, match="has no digest placeholder"):
        graph_file.seal_model(path)


def test_an_unreadable_file_is_a_bundle_error(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(hashes, "sha256_of", refuse)

    with pytest.raises(BundleError, match="cannot be read: Permission denied"):
        calipso_runtime.load(tiny)


def test_preprocessing_and_manifest_cannot_be_changed() -> None:
    for frozen, name in ((CONFIG, "size"), (tiny_manifest(), "labels")):
        assert isinstance(frozen, Preprocess | Manifest)
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(frozen, name, ())
