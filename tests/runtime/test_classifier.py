"""What the classifier answers, alone, in batches, in streams and from many threads."""

import concurrent.futures
import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from runtime_samples import CONFIG, EMBED_DIM, LABELS, MakeBundle, reference_logits

import calipso_runtime
from calipso_runtime import CalipsoWarning, Classifier, Prediction, pictures
from calipso_runtime.confidence import Confidence
from calipso_runtime.errors import BackendError, ImageError, InputError, UsageError
from calipso_runtime.prediction import rank, softmax

PIXELS = np.random.default_rng(5).integers(0, 256, (70, 24, 20, 3), dtype=np.uint8)
TENSORS = np.stack([pictures.decode(pixels, CONFIG, name="image") for pixels in PIXELS])


@pytest.fixture(scope="module")
def classifier(tiny: Path) -> Classifier:
    return calipso_runtime.load(tiny)


def test_logits_are_what_the_graph_computes(classifier: Classifier) -> None:
    logits = classifier.logits(PIXELS)

    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, reference_logits(TENSORS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 3, 69, 70, 1000])
def test_the_batch_size_does_not_change_the_answer(classifier: Classifier, batch: int) -> None:
    np.testing.assert_allclose(classifier.logits(PIXELS, batch=batch), classifier.logits(PIXELS), rtol=1e-5, atol=1e-5)


def test_embeddings_have_unit_length(classifier: Classifier) -> None:
    embeddings = classifier.embed(PIXELS)

    assert embeddings.shape == (70, EMBED_DIM)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(classifier.embed(PIXELS[4]), embeddings[4], rtol=1e-5)


def test_a_graph_without_embeddings_says_so(make_bundle: MakeBundle) -> None:
    classifier = calipso_runtime.load(make_bundle(outputs=("logits",)))

    assert classifier.logits(PIXELS[0]).shape == (len(LABELS),)
    with pytest.raises(UsageError, match="has no output 'embedding': export it again"):
        classifier.embed(PIXELS[0])


def test_several_outputs_come_from_one_pass(classifier: Classifier) -> None:
    answers = classifier.run(PIXELS, ("embedding", "logits"), batch=32)

    assert classifier.outputs == ("logits", "embedding")
    np.testing.assert_array_equal(answers["logits"], classifier.logits(PIXELS))
    np.testing.assert_array_equal(answers["embedding"], classifier.embed(PIXELS))
    assert classifier.run(PIXELS[0])["logits"].shape == (len(LABELS),)


@pytest.mark.parametrize("outputs", [(), ("tokens",), ("logits", "tokens")])
def test_outputs_that_the_graph_lacks_are_refused(classifier: Classifier, outputs: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="this bundle's graph has logits, embedding"):
        classifier.run(PIXELS, outputs)


def test_probabilities_are_the_softmax_in_float64(classifier: Classifier) -> None:
    probabilities, logits = classifier.probabilities(PIXELS), classifier.logits(PIXELS).astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)

    assert probabilities.dtype == np.float64
    np.testing.assert_allclose(probabilities, expected, rtol=1e-12)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-12)
    assert classifier.probabilities(PIXELS[0]).shape == (len(LABELS),)


def test_probabilities_are_those_of_the_bundles_temperature(make_bundle: MakeBundle) -> None:
    with calipso_runtime.load(make_bundle(confidence={"temperature": 2.0})) as warm:
        probabilities, logits = warm.probabilities(PIXELS), warm.logits(PIXELS).astype(np.float64)
        best = warm.classify(PIXELS[0])

    np.testing.assert_allclose(probabilities, softmax(logits / 2), rtol=1e-12)
    assert best.probability == pytest.approx(probabilities[0].max())
    assert best[0].logit == pytest.approx(logits[0].max())


def test_a_prediction_below_the_threshold_is_unknown_and_names_the_nearest_class(make_bundle: MakeBundle) -> None:
    with calipso_runtime.load(make_bundle()) as plain:
        best = [prediction.probability for prediction in plain.classify(PIXELS)]
        names = [prediction.label for prediction in plain.classify(PIXELS)]
        assert not any(prediction.is_unknown for prediction in plain.classify(PIXELS))
    threshold = float(np.median(best))

    with calipso_runtime.load(make_bundle(confidence={"temperature": 1.0, "unknown": {"threshold": threshold}})) as own:
        answers = own.classify(PIXELS)
        streamed = [answer for _, answer in own.classify_stream(PIXELS)]

    assert [answer.is_unknown for answer in answers] == [each < threshold for each in best]
    assert {answer.is_unknown for answer in answers} == {True, False}
    assert [answer.label for answer in answers] == names
    assert streamed == answers


def test_softmax_does_not_overflow_on_clips_logits() -> None:
    assert softmax(np.array([1e4, 1e4 - 1, -1e4], np.float32)) == pytest.approx([0.7310586, 0.2689414, 0], abs=1e-7)


def test_a_prediction_is_sorted_and_complete(classifier: Classifier) -> None:
    prediction = classifier.classify(PIXELS[0], top=3)
    logits = classifier.logits(PIXELS[0])

    assert [score.index for score in prediction] == np.argsort(-logits)[:3].tolist()
    assert [score.label for score in prediction] == [LABELS[score.index] for score in prediction]
    assert [score.logit for score in prediction] == sorted(logits.tolist(), reverse=True)[:3]
    assert prediction[0].probability == pytest.approx(classifier.probabilities(PIXELS[0]).max())
    assert (prediction.label, prediction.probability) == (prediction[0].label, prediction[0].probability)


def test_equal_logits_are_in_the_order_of_the_labels() -> None:
    prediction = rank(np.array([1, 5, 5, 0, 5], np.float32), "abcde", 4, Confidence())

    assert [score.label for score in prediction] == ["b", "c", "e", "a"]


def test_top_beyond_the_classes_is_all_of_them(classifier: Classifier) -> None:
    assert len(classifier.classify(PIXELS[0], top=1000)) == len(LABELS)
    assert len(classifier.classify(PIXELS[0])) == 5


def test_one_picture_gives_a_prediction_and_many_give_a_list(classifier: Classifier) -> None:
    assert isinstance(classifier.classify(PIXELS[0]), Prediction)
    assert classifier.classify(PIXELS[:1]) == [classifier.classify(PIXELS[0])]
    assert len(classifier.classify(list(PIXELS))) == 70


def test_a_prediction_cannot_be_changed(classifier: Classifier) -> None:
    prediction = classifier.classify(PIXELS[0])

    for frozen, name in ((prediction, "scores"), (prediction[0], "label")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(frozen, name, None)


def test_eight_threads_get_the_serial_answers(classifier: Classifier) -> None:
    groups = [np.random.default_rng(seed).integers(0, 256, (9, 40, 30, 3), dtype=np.uint8) for seed in range(8)]
    serial = [classifier.classify(group, batch=4) for group in groups]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        futures = [[pool.submit(classifier.classify, group, batch=4) for group in groups] for _ in range(12)]
        rounds = [[future.result() for future in row] for row in futures]

    assert all(answers == serial for answers in rounds)


def test_a_stream_answers_in_order_and_goes_on_after_a_bad_picture(classifier: Classifier, photo: Path) -> None:
    items = [photo, b"junk", PIXELS[0], "lost.jpg", TENSORS[1], b"", photo]

    answered = list(classifier.classify_stream(iter(items), top=2, batch=2))

    assert [item is given for (item, _), given in zip(answered, items, strict=True)] == [True] * 7
    kinds = [type(answer) for _, answer in answered]
    assert kinds == [Prediction, ImageError, Prediction, ImageError, Prediction, ImageError, Prediction]
    assert answered[0][1] == answered[6][1]
    assert answered[2][1].label == classifier.classify(PIXELS[0]).label
    assert "image 1 cannot" in str(answered[1][1])
    assert "lost.jpg cannot" in str(answered[3][1])


def test_a_stream_reads_one_batch_ahead_and_no_more(classifier: Classifier) -> None:
    taken = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal taken
        while True:
            taken += 1
            yield PIXELS[taken % len(PIXELS)]

    stream = classifier.classify_stream(endless(), batch=4)

    assert taken == 0
    for answered in range(1, 10):
        next(stream)
        assert taken == 4 * -(-answered // 4)


def test_an_empty_stream_is_empty(classifier: Classifier) -> None:
    assert list(classifier.classify_stream([])) == []


def test_a_stream_stops_at_what_is_no_picture(classifier: Classifier) -> None:
    with pytest.raises(InputError, match="image 1 has dtype float64"):
        list(classifier.classify_stream([PIXELS[0], np.zeros((3, 16, 16))]))


def test_a_failed_parity_gate_warns_and_answers(make_bundle: MakeBundle) -> None:
    folder = make_bundle(parity="failed")

    with pytest.warns(CalipsoWarning, match="failed its parity gate") as caught:
        classifier = calipso_runtime.load(folder)

    assert caught[0].filename == __file__
    assert len(classifier.classify(PIXELS[0])) == 5


@pytest.mark.parametrize("parity", ["passed", "unknown"])
def test_any_other_parity_does_not_warn(make_bundle: MakeBundle, parity: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert calipso_runtime.load(make_bundle(parity=parity)).manifest.parity == parity


def test_an_answer_that_is_not_finite_is_a_backend_error(classifier: Classifier, monkeypatch) -> None:
    broken = {"logits": np.full((1, len(LABELS)), np.nan, np.float32)}
    monkeypatch.setattr(classifier._head.now.engine, "run", lambda *_: broken)

    with pytest.raises(BackendError, match="answered logits that are not finite"):
        classifier.classify(PIXELS[0])


def test_a_refused_bundle_gives_its_engine_back(make_bundle: MakeBundle, monkeypatch) -> None:
    from calipso_runtime.backends.ort import OrtCpuBackend

    closed = []

    def close(self: OrtCpuBackend) -> None:
        closed.append(self)

    monkeypatch.setattr(OrtCpuBackend, "close", close)

    with pytest.raises(calipso_runtime.BundleCorruptError):
        calipso_runtime.load(make_bundle(labels=("one", "two")))
    assert len(closed) == 1


def test_a_classifier_tells_what_it_is(classifier: Classifier) -> None:
    assert repr(classifier) == "<Classifier tiny, 7 classes, ort on CPUExecutionProvider>"
    assert classifier.labels == LABELS
    assert classifier.manifest.model["embed_dim"] == EMBED_DIM
