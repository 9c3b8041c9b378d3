"""Bundles that take any labels: what they answer, what they remember, and what they refuse."""

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from click.testing import CliRunner
from open_samples import (
    CONTEXT,
    TEMPLATES,
    expected_logits,
    ids_of,
    label_features,
    text_features,
    write_open_bundle,
)
from PIL import Image
from runtime_samples import CONFIG, SIZE, MakeBundle

import calipso_runtime
from calipso_runtime import Classifier, Embedder, load, load_embedder
from calipso_runtime.backends import connect
from calipso_runtime.bundle import TOKENIZER_FILE, open_bundle
from calipso_runtime.cli import calipso
from calipso_runtime.errors import (
    BackendError,
    BundleCorruptError,
    CalipsoWarning,
    InputError,
    TeachingError,
    UsageError,
)
from calipso_runtime.graph_file import TEXT_FILE
from calipso_runtime.preprocess import normalise
from calipso_runtime.texts import Texts

KINDS = ("open", "embed")
BACKENDS = ("ort", "openvino")
LABELS = ["cat", "dog", "bird", "7"]


@pytest.fixture(scope="module", params=KINDS)
def sample(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of each kind that nobody changes."""
    return write_open_bundle(tmp_path_factory.mktemp("open") / "tiny.calipso", kind=request.param)


@pytest.fixture(params=BACKENDS)
def classifier(sample: Path, request: pytest.FixtureRequest) -> Iterator[Classifier]:
    pytest.importorskip({"ort": "onnxruntime"}.get(request.param, request.param))
    with load(sample, backend=request.param) as loaded:
        yield loaded


@pytest.fixture
def embedder(sample: Path) -> Iterator[Embedder]:
    with load_embedder(sample, backend="ort") as loaded:
        yield loaded


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(4).integers(0, 256, (5, *SIZE, 3), dtype=np.uint8)


def tensors_of(pixels: np.ndarray) -> np.ndarray:
    return np.stack([normalise(each, CONFIG) for each in pixels])


def encodings(texts: Texts) -> list[int]:
    """From here on, how many texts each call of the text tower got."""
    counts: list[int] = []
    engine = texts.engine
    run = engine.run

    def counting(ids: Any, outputs: Any) -> Any:
        counts.append(len(ids))
        return run(ids, outputs)

    cast("Any", engine).run = counting
    return counts


def test_labels_are_classified_by_the_bundles_prompts(classifier: Classifier, pixels: np.ndarray) -> None:
    wanted = expected_logits(tensors_of(pixels), label_features(LABELS))

    np.testing.assert_allclose(classifier.logits(pixels, labels=LABELS), wanted, rtol=0, atol=1e-5 * abs(wanted).max())
    predictions = classifier.classify(pixels, labels=LABELS, top=1)
    assert [each.label for each in predictions] == [LABELS[place] for place in wanted.argmax(axis=1)]


def test_prompts_are_encoded_as_they_are(classifier: Classifier, pixels: np.ndarray) -> None:
    prompts = ["a photo of a cat", "the dog.", "bird"]
    wanted = expected_logits(tensors_of(pixels[:1]), text_features(prompts))[0]

    np.testing.assert_allclose(classifier.logits(pixels[0], prompts=prompts), wanted, rtol=1e-4)
    assert classifier.classify(pixels[0], prompts=prompts).label in prompts


def test_logits_of_remembered_features_are_the_graphs_own(classifier: Classifier, pixels: np.ndarray) -> None:
    prompts = ["a cat", "a dog", "a bird"]
    own = classifier.run(pixels, ("logits", "embedding"), prompts=prompts)

    found = classifier.logits(pixels, prompts=prompts)

    assert np.abs(found - own["logits"]).max() < 1e-5 * np.abs(own["logits"]).max()
    assert own["embedding"].shape == (5, 5)


def test_labels_that_come_again_are_not_encoded_again(classifier: Classifier, pixels: np.ndarray) -> None:
    texts = cast("Any", classifier)._head._texts
    counts = encodings(texts)

    first = classifier.logits(pixels, labels=LABELS)
    again = classifier.logits(pixels, labels=[*LABELS[::-1], "a"])

    assert counts == [len(LABELS) * len(TEMPLATES), len(TEMPLATES)]
    np.testing.assert_array_equal(again[:, :4], first[:, ::-1])


def test_a_label_that_stands_twice_counts_once(classifier: Classifier, pixels: np.ndarray) -> None:
    once = classifier.classify(pixels[0], labels=["cat", "dog"])

    twice = classifier.classify(pixels[0], labels=["cat", "dog", "cat"])

    assert list(twice) == list(once)
    # A column for each that was asked for.
    assert classifier.logits(pixels[0], labels=["cat", "dog", "cat"]).shape == (3,)


def test_a_stream_is_answered_over_the_labels_of_the_call(classifier: Classifier, pixels: np.ndarray) -> None:
    found = [answer for _, answer in classifier.classify_stream(iter(pixels), labels=LABELS, batch=2)]

    assert found == [
        answer for part in (pixels[:2], pixels[2:4], pixels[4:]) for answer in classifier.classify(part, labels=LABELS)
    ]


def test_a_bundles_own_labels_are_meant_where_none_are_named(tmp_path: Path, pixels: np.ndarray) -> None:
    path = write_open_bundle(tmp_path / "own.calipso", labels=("cat", "dog"))

    with load(path, backend="ort") as classifier:
        assert classifier.labels == ("cat", "dog")
        assert classifier.classify(pixels[0]) == classifier.classify(pixels[0], labels=["cat", "dog"])


def test_prompts_of_classes_serve_these_classes_alone(tmp_path: Path, pixels: np.ndarray) -> None:
    own = {"cat": ["the cat", "a cat."], "dog": ["dog"]}
    path = write_open_bundle(
        tmp_path / "own.calipso", labels=("cat", "dog"), prompts={"source": "x", "templates": [], "per_class": own}
    )

    with load(path, backend="ort") as classifier:
        wanted = expected_logits(tensors_of(pixels[:1]), label_features(["cat"], ("the cat", "a cat.")))[0]
        np.testing.assert_allclose(classifier.logits(pixels[0], labels=["cat"]), wanted, rtol=1e-4)
        with pytest.raises(InputError, match="prompts for cat, dog alone, and none for 'bird'"):
            classifier.classify(pixels[0], labels=["cat", "bird"])


@pytest.mark.parametrize("labels", [[], ()])
def test_no_label_is_an_error(classifier: Classifier, pixels: np.ndarray, labels: Any) -> None:
    with pytest.raises(InputError, match="labels is empty: expected at least one"):
        classifier.classify(pixels, labels=labels)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ({"labels": "cat"}, "expected a list of texts"),
        ({"labels": ["cat", 3]}, r"labels\[1\] is a int"),
        ({"labels": ["cat"], "prompts": ["a cat"]}, "give one of them"),
        ({"labels": None}, "has no labels of its own"),
    ],
)
def test_what_are_no_labels_is_refused(classifier: Classifier, pixels: np.ndarray, texts: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        classifier.classify(pixels, **texts)


def test_features_of_pictures_and_texts_are_those_of_the_towers(embedder: Embedder, pixels: np.ndarray) -> None:
    texts = ["a cat", "", "the dog . 12"]

    np.testing.assert_allclose(embedder.text(texts), text_features(texts), atol=1e-6)
    np.testing.assert_allclose(embedder.label(["cat"]), label_features(["cat"]), atol=1e-6)
    assert embedder.text("a cat").shape == embedder.image(pixels[0]).shape == (embedder.width,)
    np.testing.assert_allclose(np.linalg.norm(embedder.image(pixels), axis=1), 1, atol=1e-6)


def test_a_stream_of_pictures_goes_on_after_one_that_cannot_be_read(embedder: Embedder, pixels: np.ndarray) -> None:
    found = list(embedder.image_stream([pixels[0], b"no picture", pixels[1]], batch=2))

    assert isinstance(found[1][1], calipso_runtime.ImageError)
    np.testing.assert_array_equal(np.stack([found[0][1], found[2][1]]), embedder.image(pixels[:2]))


def test_a_text_beyond_the_context_is_cut_and_told_on_request(embedder: Embedder) -> None:
    long = "cat dog " * CONTEXT

    cut = embedder.text([long])

    np.testing.assert_allclose(cut, text_features([long]), atol=1e-6)
    with pytest.warns(CalipsoWarning, match="more tokens than the 8"):
        np.testing.assert_array_equal(embedder.text(["a", long], truncation="warn")[1:], cut)
    # Also where the feature is known already.
    with pytest.raises(InputError, match="the first is number 1"):
        embedder.text(["a", long], truncation="error")


def test_labels_and_prompts_beyond_the_context_are_told_where_the_bundle_is_loaded_so(
    sample: Path, pixels: np.ndarray
) -> None:
    long = "cat dog " * CONTEXT

    with load(sample, backend="ort", truncation="warn") as classifier:
        with pytest.warns(CalipsoWarning, match="1 of 2 texts have more tokens than the 8.*number 1"):
            told = classifier.logits(pixels, labels=["a", long])
        with pytest.warns(CalipsoWarning, match="1 of 2 texts have more tokens than the 8"):
            classifier.logits(pixels, prompts=["a", long])
    with load(sample, backend="ort", truncation="error") as classifier:
        # Also where the features are known already.
        classifier.logits(pixels, labels=["a", "cat"])
        for _ in range(2):
            with pytest.raises(InputError, match="the first is number 0"):
                classifier.classify(pixels, labels=[long])
    with load(sample, backend="ort") as classifier:
        np.testing.assert_array_equal(classifier.logits(pixels, labels=["a", long]), told)


def test_a_way_with_long_texts_that_there_is_not_is_refused(sample: Path) -> None:
    with pytest.raises(InputError, match="truncation is 'loud'"):
        load(sample, truncation="loud")


def test_the_command_says_that_a_label_was_cut(sample: Path, tmp_path: Path) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "photo.png")
    long = "cat dog " * CONTEXT

    result = CliRunner().invoke(
        calipso, ["classify", str(sample), str(tmp_path / "photo.png"), "--labels", f"a,{long}"]
    )

    assert result.exit_code == 0
    assert result.stderr.startswith("warning: 1 of 2 texts have more tokens than the 8")
    assert result.stderr.count("warning") == 1


def test_many_threads_get_the_same_features(embedder: Embedder, pixels: np.ndarray) -> None:
    texts = [f"{number} cat" for number in range(60)]
    wanted, failures = text_features(texts), list[BaseException]()

    def ask(seed: int) -> None:
        try:
            order = np.random.default_rng(seed).permutation(len(texts))
            np.testing.assert_allclose(embedder.text([texts[place] for place in order]), wanted[order], atol=1e-6)
            embedder.image(pixels)
        except BaseException as error:  # noqa: BLE001 - told below
            failures.append(error)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not failures


def test_features_are_kept_within_their_bound_and_the_oldest_go_first(sample: Path) -> None:
    texts = [f"{number}" for number in range(20)]
    with load_embedder(sample, backend="ort", text_cache_bytes=4200) as embedder:
        counts = encodings(cast("Any", embedder)._texts)
        embedder.text(texts)
        embedder.text(texts[-5:])
        assert counts == [20]

        embedder.text(texts[:1])
        assert counts == [20, 1]
        cache = cast("Any", embedder)._texts._cache
        assert 0 < cache._bytes <= 4200
        assert len(cache._entries) < 20


def test_openvino_compiles_one_tower_for_each_output(tmp_path: Path, pixels: np.ndarray) -> None:
    pytest.importorskip("openvino")
    engine, _ = connect(open_bundle(write_open_bundle(tmp_path / "b")), backend="openvino", threads=None)
    parts = cast("Any", engine)._parts

    for outputs, inputs in (
        (["embedding"], {"image"}),
        (["text_embedding"], {"token_ids"}),
        (["logits"], {"image", "token_ids"}),
    ):
        assert {port.get_any_name() for port in parts.of(outputs)[1].inputs} == inputs
    engine.close()


def test_texts_given_to_a_baked_bundle_are_refused(make_bundle: MakeBundle, pixels: np.ndarray) -> None:
    with load(make_bundle(), backend="ort") as classifier:
        for ask in (
            lambda: classifier.classify(pixels, labels=["cat"]),
            lambda: classifier.logits(pixels, prompts=["a cat"]),
            lambda: classifier.run(pixels, prompts=["a cat"]),
            lambda: classifier.classify_stream(pixels, labels=["cat"]),
            lambda: classifier.embed_text(["a cat"]),
        ):
            with pytest.raises(UsageError, match=r"no text tower.*--head-mode open or --embed"):
                ask()


def test_an_embedder_of_a_baked_bundle_is_refused(make_bundle: MakeBundle) -> None:
    with pytest.raises(UsageError, match="no text tower"):
        load_embedder(make_bundle(), backend="ort")


def test_a_bundle_of_any_labels_cannot_be_taught(classifier: Classifier, pixels: np.ndarray) -> None:
    with pytest.raises(TeachingError, match="takes any labels"):
        classifier.teach("cat", pixels)


@pytest.mark.parametrize("name", [TOKENIZER_FILE, TEXT_FILE])
def test_a_file_that_was_changed_after_the_export_is_refused(tmp_path: Path, name: str) -> None:
    path = write_open_bundle(tmp_path / "b", kind="embed")
    content = bytearray((path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (path / name).write_bytes(content)

    with pytest.raises(BundleCorruptError, match=name):
        load(path, backend="ort")


def bare(sample: Path, folder: Path) -> Path:
    """The graphs and the tokenizer, without a manifest beside them."""
    shutil.copytree(sample, folder, ignore=shutil.ignore_patterns("manifest.json"))
    return folder / "model.onnx"


def test_a_bare_graph_takes_labels_with_the_files_beside_it(sample: Path, tmp_path: Path, pixels: np.ndarray) -> None:
    with load(bare(sample, tmp_path / "bare"), backend="ort") as classifier, load(sample, backend="ort") as whole:
        assert classifier.classify(pixels, labels=LABELS) == whole.classify(pixels, labels=LABELS)


def test_a_bare_graph_refuses_a_tokenizer_that_is_not_its_own(sample: Path, tmp_path: Path, pixels: np.ndarray) -> None:
    path = bare(sample, tmp_path / "bare")
    tokenizer = path.with_name(TOKENIZER_FILE)
    document = json.loads(tokenizer.read_text())
    document["model"]["vocab"]["cat"], document["model"]["vocab"]["dog"] = (
        document["model"]["vocab"]["dog"],
        document["model"]["vocab"]["cat"],
    )
    tokenizer.write_text(json.dumps(document))

    with load(path, backend="ort") as classifier, pytest.raises(BundleCorruptError, match="its sha256 is another"):
        classifier.classify(pixels, labels=LABELS)


def test_a_text_tower_of_another_export_is_refused(tmp_path: Path, pixels: np.ndarray) -> None:
    own = write_open_bundle(tmp_path / "own", kind="embed")
    other = write_open_bundle(tmp_path / "other", kind="embed", precision="fp16")
    path = bare(own, tmp_path / "bare")
    shutil.copyfile(other / TEXT_FILE, path.with_name(TEXT_FILE))

    with load(path, backend="ort") as classifier, pytest.raises(BundleCorruptError, match="different exports"):
        classifier.classify(pixels, labels=LABELS)


def test_a_text_tower_that_is_missing_is_told(tmp_path: Path, pixels: np.ndarray) -> None:
    path = bare(write_open_bundle(tmp_path / "own", kind="embed"), tmp_path / "bare")
    path.with_name(TEXT_FILE).unlink()

    with load(path, backend="ort") as classifier, pytest.raises(BundleCorruptError, match=r"text\.onnx is missing"):
        classifier.classify(pixels, labels=LABELS)


def test_a_closed_embedder_answers_no_more(sample: Path, pixels: np.ndarray) -> None:
    embedder = load_embedder(sample, backend="ort")
    embedder.text(["a cat"])
    embedder.close()

    with pytest.raises(BackendError, match="closed"):
        embedder.image(pixels)
    with pytest.raises(BackendError, match="closed"):
        embedder.text(["a cat"])


def test_the_sample_tokenizer_is_what_its_numpy_says(sample: Path) -> None:
    with load_embedder(sample, backend="ort") as embedder:
        tokenizer = cast("Any", embedder)._texts.tokenizer
        for text in ("a photo of 12 cats.", "", "cat " * 20):
            assert tokenizer([text]).tolist() == [ids_of(text)]


MANY = """
import resource, sys
import numpy as np
from calipso_runtime import load
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
with load(sys.argv[1], backend="ort") as classifier:
    picture = np.zeros((16, 16, 3), np.uint8)
    classifier.classify(picture, labels=["cat", "dog"])
    before = peak()
    labels = [f"cat {number}" for number in range(100_000)]
    first = classifier.classify([picture] * 3, labels=labels)
    assert first[0].label in set(labels) and len(classifier.logits(picture, labels=labels)) == 100_000
    print(peak() - before)
"""


@pytest.mark.slow
def test_a_hundred_thousand_labels_take_memory_for_their_features_alone(tmp_path: Path) -> None:
    path = write_open_bundle(tmp_path / "wide.calipso", width=512)

    result = subprocess.run(
        [sys.executable, "-c", MANY, str(path)], capture_output=True, check=False, text=True, timeout=600
    )

    assert result.returncode == 0, result.stderr
    # Features of the call, 205 MB, and those that are remembered, 256 MB at most.
    assert float(result.stdout) < 600
