"""The reference of a bundle: what is written is read, what is wrong is refused, and an engine is held to it."""

import dataclasses
import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from runtime_samples import CONFIG, EMBED_DIM, LABELS, SIZE, MakeBundle, reference_answers, tiny_reference

from calipso_runtime import bundle as bundle_module
from calipso_runtime.backends import TensorInfo
from calipso_runtime.bundle import PARITY_FILE, REFERENCE_FILE, open_bundle
from calipso_runtime.errors import BackendError, BundleCorruptError, BundleError, UsageError
from calipso_runtime.manifest import Manifest, read_manifest, write_manifest
from calipso_runtime.parity import Answers, Gates
from calipso_runtime.preprocess import normalise
from calipso_runtime.reference import batch_sizes, read_gates, read_reference, verify_engine, write_reference

Arrays = dict[str, np.ndarray]
Answered = dict[str, np.ndarray]


class NumpyEngine:
    """The tiny graph, computed by numpy; `change` spoils its answers."""

    name, provider, graph = "numpy", "this CPU", "the tiny graph"

    def __init__(
        self,
        *,
        change: Callable[[Answered], Answered] = lambda answers: answers,
        outputs: tuple[str, ...] = ("logits", "embedding"),
        dtype: str = "float32",
    ) -> None:
        self.metadata: dict[str, str] = {}
        self.inputs = [TensorInfo(name="image", shape=(None, 3, *SIZE), dtype=dtype)]
        self.outputs = [TensorInfo(name=name, shape=(None, None), dtype=dtype) for name in outputs]
        self.change = change
        self.asked: list[np.ndarray] = []

    def run(self, image: np.ndarray, outputs: Sequence[str]) -> Answered:
        self.asked.append(image)
        answers = self.change(reference_answers(image.astype(np.float32)))
        return {name: answers[name].astype(image.dtype) for name in outputs}

    def close(self) -> None:
        pass


def rewrite(folder: Path, name: str, content: bytes) -> None:
    """Replace a file, and let the manifest say so: only what is in it can be wrong then."""
    (folder / name).write_bytes(content)
    manifest = open_manifest(folder)
    files = {**manifest.files, name: bundle_module.file_entry(folder / name)}
    write_manifest(
        folder / bundle_module.MANIFEST_FILE, dataclasses.replace(manifest, files=dict(sorted(files.items())))
    )


def open_manifest(folder: Path) -> Manifest:
    return read_manifest(folder / bundle_module.MANIFEST_FILE)


def archive(arrays: Arrays) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=True, **arrays)
    return stream.getvalue()


@pytest.fixture
def own_checkable(checkable: Path, tmp_path: Path) -> Path:
    """A copy of the bundle with a reference, to be damaged."""
    return Path(shutil.copytree(checkable, tmp_path / "checkable"))


def test_what_is_written_is_read(checkable: Path) -> None:
    wanted, found = tiny_reference(), read_reference(open_bundle(checkable))

    assert found is not None
    for name in ("names", "truth", "edge_cases", "given"):
        assert getattr(found, name) == getattr(wanted, name)
    np.testing.assert_array_equal(found.pixels, wanted.pixels)
    assert set(found.answers.outputs) == {"logits", "embedding"}
    for name, values in wanted.answers.outputs.items():
        np.testing.assert_array_equal(found.answers.outputs[name], values)


def test_the_same_reference_is_the_same_bytes_whenever_it_is_written(tmp_path: Path) -> None:
    first, second = tmp_path / "first.npz", tmp_path / "second.npz"

    write_reference(first, tiny_reference())
    write_reference(second, tiny_reference())

    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as opened:
        assert {entry.date_time for entry in opened.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_a_bundle_from_before_and_a_bare_graph_have_none_and_load(tiny: Path, checkable: Path) -> None:
    assert read_reference(open_bundle(tiny)) is None
    assert read_reference(open_bundle(checkable / "model.onnx")) is None


WRONG: dict[str, tuple[Callable[[Arrays], Arrays], str]] = {
    "no pixels": (lambda a: {name: a[name] for name in a if name != "pixels"}, "pixels"),
    "no names": (lambda a: {name: a[name] for name in a if name != "names"}, "names"),
    "no logits": (lambda a: {name: a[name] for name in a if name != "logits"}, "logits"),
    "float pixels": (lambda a: {**a, "pixels": a["pixels"].astype(np.float32)}, "pixels is float32"),
    "another size": (lambda a: {**a, "pixels": a["pixels"][:, :8]}, r"expected is uint8 \[6, 16, 16, 3\]"),
    "another bundle's classes": (lambda a: {**a, "logits": a["logits"][:, :5]}, r"logits is float32 \[6, 5\]"),
    "an answer too few": (lambda a: {**a, "embedding": a["embedding"][:5]}, r"embedding is float32 \[5, 5\]"),
    "a name too few": (lambda a: {**a, "names": a["names"][:5]}, "5 names"),
    "no such class": (lambda a: {**a, "truth": a["truth"] + 1}, "class 7, and there are 7 classes"),
    "too many edge cases": (lambda a: {**a, "edge_cases": np.int64(7)}, "7 edge cases"),
    "no pictures": (lambda a: {n: v[:0] if v.ndim else v for n, v in a.items()}, "0 pictures"),
    "pickled": (lambda a: {**a, "names": a["names"].astype(object)}, "allow_pickle"),
}


@pytest.mark.parametrize(("change", "told"), WRONG.values(), ids=WRONG)
def test_a_reference_that_is_none_of_this_bundle_is_refused(
    own_checkable: Path, change: Callable[[Arrays], Arrays], told: str
) -> None:
    with np.load(own_checkable / REFERENCE_FILE) as opened:
        arrays = dict(opened)
    rewrite(own_checkable, REFERENCE_FILE, archive(change(arrays)))

    with pytest.raises(BundleCorruptError, match=rf"reference\.npz is no reference of this bundle: .*{told}"):
        read_reference(open_bundle(own_checkable))


class Planted:
    """What would run if a pickle were read."""

    def __reduce__(self) -> tuple[object, ...]:
        return pytest.fail, ("a pickle was read",)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more", b"words", pickle.dumps(Planted())])
def test_a_file_that_is_no_archive_is_refused(own_checkable: Path, content: bytes) -> None:
    rewrite(own_checkable, REFERENCE_FILE, content)

    with pytest.raises(BundleCorruptError, match="cannot be read"):
        read_reference(open_bundle(own_checkable))


def test_a_single_array_is_no_reference(own_checkable: Path) -> None:
    np.save(own_checkable / "one.npy", np.zeros(3))
    rewrite(own_checkable, REFERENCE_FILE, (own_checkable / "one.npy").read_bytes())

    with pytest.raises(BundleCorruptError, match="is no reference"):
        read_reference(open_bundle(own_checkable))


def test_a_truncated_archive_is_refused(own_checkable: Path) -> None:
    whole = (own_checkable / REFERENCE_FILE).read_bytes()
    rewrite(own_checkable, REFERENCE_FILE, whole[: len(whole) // 2] + whole[-200:])

    with pytest.raises(BundleCorruptError, match=r"reference\.npz"):
        read_reference(open_bundle(own_checkable))


def test_an_engine_that_answers_like_eager_passes(checkable: Path) -> None:
    parity = verify_engine(NumpyEngine(), open_bundle(checkable))

    assert (parity.status, parity.failures) == ("passed", ())
    assert list(parity.document["by_batch"]) == ["1", "2", "7"]
    assert {measured["pictures"] for measured in parity.document["by_batch"].values()} == {6}
    assert parity.document["pictures"] == {"source": "reference.npz", "count": 4, "edge_cases": 2}
    assert parity.document["shipped"] == "the tiny graph through calipso_runtime, numpy on this CPU"
    assert parity.document["accuracy"]["pictures"] == 2


def turned(answers: Answered) -> Answered:
    return {**answers, "logits": np.roll(answers["logits"], 1, axis=1)}


def not_finite(answers: Answered) -> Answered:
    return {**answers, "logits": np.full_like(answers["logits"], np.nan)}


def off(answers: Answered) -> Answered:
    return {**answers, "embedding": answers["embedding"] + np.float32(0.05)}


@pytest.mark.parametrize(
    ("change", "told"), [(turned, "relative logit error"), (not_finite, "NaN or infinite"), (off, "embedding cosine")]
)
def test_an_engine_that_does_not_fails(checkable: Path, change: Callable[[Answered], Answered], told: str) -> None:
    parity = verify_engine(NumpyEngine(change=change), open_bundle(checkable))

    assert parity.status == "failed"
    assert any(told in failure for failure in parity.failures)


def test_an_error_at_one_batch_size_fails(checkable: Path) -> None:
    def only_in_pairs(answers: Answered) -> Answered:
        return turned(answers) if len(answers["logits"]) == 2 else answers

    parity = verify_engine(NumpyEngine(change=only_in_pairs), open_bundle(checkable))

    assert {failure.split(":")[0] for failure in parity.failures} == {"batch 2"}


def test_the_gates_are_those_of_the_bundle(make_bundle: MakeBundle) -> None:
    def slightly(answers: Answered) -> Answered:
        return {**answers, "logits": answers["logits"] * np.float32(1.002)}

    strict, loose = (
        verify_engine(
            NumpyEngine(change=slightly),
            open_bundle(make_bundle(reference=tiny_reference(), gates=Gates(max_relative_logit_error=allowed))),
        )
        for allowed in (1e-3, 1e-2)
    )

    assert (strict.status, loose.status) == ("failed", "passed")
    assert loose.document["gates"]["max_relative_logit_error"] == 1e-2


@pytest.mark.parametrize("size", [1, 4, 6, 16])
def test_every_batch_is_full_and_is_what_the_graph_takes(checkable: Path, size: int) -> None:
    engine = NumpyEngine()

    parity = verify_engine(engine, open_bundle(checkable), batches=(size,))

    asked = np.concatenate(engine.asked)
    assert {len(images) for images in engine.asked} == {size}
    np.testing.assert_array_equal(asked[:6], [normalise(each, CONFIG) for each in tiny_reference().pixels])
    assert parity.document["by_batch"][str(size)]["pictures"] == 6


def test_an_engine_of_16_bit_inputs_gets_them(checkable: Path) -> None:
    engine = NumpyEngine(dtype="float16")

    verify_engine(engine, open_bundle(checkable))

    assert {images.dtype.name for images in engine.asked} == {"float16"}


def test_an_engine_without_an_output_of_the_graph_is_refused(checkable: Path) -> None:
    with pytest.raises(BackendError, match=r"numpy gives logits: the bundle's graph gives embedding, logits"):
        verify_engine(NumpyEngine(outputs=("logits",)), open_bundle(checkable))


def test_answers_of_another_shape_are_refused(checkable: Path) -> None:
    def cut(answers: Answered) -> Answered:
        return {**answers, "logits": answers["logits"][:, :3]}

    with pytest.raises(BackendError, match=r"answers logits \[1, 3\] to a batch of 1, the bundle's graph .*\[1, 7\]"):
        verify_engine(NumpyEngine(change=cut), open_bundle(checkable))


@pytest.mark.parametrize(("given", "status"), [(4, "failed"), (5, "passed")])
def test_accuracy_is_a_gate_only_where_all_pictures_are_there(make_bundle: MakeBundle, given: int, status: str) -> None:
    loose = {"max_relative_logit_error": 1.0, "min_top1_agreement": 0.0, "max_accuracy_drop": 0.4}
    best = tiny_reference().answers.logits.argmax(axis=1)
    reference = tiny_reference(truth=(int(best[0]), int(best[1]), None, None, None, None), given=given)
    folder = make_bundle(reference=reference, gates=Gates(**loose))

    def second_best(answers: Answered) -> Answered:
        logits = answers["logits"].copy()
        second = np.sort(logits, axis=1)[:, -2]
        logits[np.arange(len(logits)), logits.argmax(axis=1)] = second - np.float32(0.01)
        return {**answers, "logits": logits}

    parity = verify_engine(NumpyEngine(change=second_best), open_bundle(folder))

    assert parity.document["accuracy"]["drop"] == 1.0
    assert parity.status == status


def test_without_a_reference_it_says_what_to_do(tiny: Path) -> None:
    with pytest.raises(BundleError, match=r"carries no answers of eager PyTorch .*--no-reference.*calipso verify"):
        verify_engine(NumpyEngine(), open_bundle(tiny))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"gates": {"of tomorrow": 1}}', '{"gates": {"min_same_top1": 7}}'])
def test_gates_that_are_none_are_refused(own_checkable: Path, text: str) -> None:
    rewrite(own_checkable, PARITY_FILE, text.encode())

    with pytest.raises(BundleCorruptError, match=r"parity\.json tells no gates"):
        verify_engine(NumpyEngine(), open_bundle(own_checkable))


def test_gates_are_read_as_they_were_recorded(tmp_path: Path) -> None:
    wanted = Gates(min_same_top1=0.99, max_accuracy_drop=0.005)
    (tmp_path / PARITY_FILE).write_text(json.dumps({"gates": dataclasses.asdict(wanted)}))

    assert read_gates(tmp_path / PARITY_FILE) == wanted


@pytest.mark.parametrize("batches", [(), (0,), (1, -2)])
def test_batch_sizes_that_are_none_are_refused(checkable: Path, batches: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="expected at least one, each at least 1"):
        verify_engine(NumpyEngine(), open_bundle(checkable), batches=batches)


@pytest.mark.parametrize(
    ("ranges", "sizes"),
    [
        ([(1, 8)], (1, 2, 7, 8)),
        ([(4, 4)], (4,)),
        ([(1, 1), (2, 16)], (1, 2, 7, 16)),
        ([(3, 6), (32, 64)], (3, 6, 32, 64)),
    ],
)
def test_an_engine_is_asked_within_its_ranges_and_at_their_ends(
    ranges: list[tuple[int, int]], sizes: tuple[int, ...]
) -> None:
    assert batch_sizes(*ranges) == sizes


def test_the_reference_tells_what_the_tiny_graph_gives() -> None:
    answers: Answers = tiny_reference().answers

    assert {name: values.shape for name, values in answers.outputs.items()} == {
        "logits": (6, len(LABELS)),
        "embedding": (6, EMBED_DIM),
    }
