"""Teaching a loaded bundle: on every engine of a CPU, in use at once, on the disk when `save` returns."""

import re
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import bound_on_cpu
import numpy as np
import pytest
from runtime_samples import EMBED_DIM, LABELS, tiny_reference
from teaching_samples import make_teachable, photo, photos, sample_head, unit

from calipso_runtime import Classifier, load
from calipso_runtime.backends import why_unavailable
from calipso_runtime.bundle import HEAD_FILE, open_bundle
from calipso_runtime.errors import (
    BackendUnavailableError,
    BundleCorruptError,
    CalipsoWarning,
    InputError,
    TeachingError,
    UsageError,
)
from calipso_runtime.head.calibrate import calibrate
from calipso_runtime.head.journal import CHANGES_FILE, FOLDER
from calipso_runtime.head.search import START
from child_process import child

ENGINES = ("ort", "openvino", "bound-on-cpu")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_teachable(tmp_path_factory.mktemp("teachable") / "own", reference=tiny_reference())


@pytest.fixture
def teachable(shared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shared, tmp_path / "teachable"))


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    bound_on_cpu.register(monkeypatch)
    if request.param == "openvino" and (why := why_unavailable("openvino")) is not None:
        pytest.skip(why)
    return str(request.param)


@pytest.fixture
def classifier(teachable: Path) -> Iterator[Classifier]:
    with warnings.catch_warnings():
        # Of changes that a test does not save.
        warnings.simplefilter("ignore", CalipsoWarning)
        with load(teachable, backend="ort") as opened:
            yield opened


def test_a_taught_class_is_answered_at_once_and_after_loading_again(teachable: Path, engine: str) -> None:
    with load(teachable, backend=engine) as classifier:
        classifier.teach("mug", photos(3))
        classifier.save()
        now = classifier.logits(photos(3, 2))
        assert classifier.classify(photo(3)).label == "mug"

    with load(teachable, backend=engine) as again:
        assert again.labels == (*LABELS, "mug")
        assert np.array_equal(again.logits(photos(3, 2)), now)


def test_every_answer_is_that_of_the_formula_in_numpy(teachable: Path, engine: str) -> None:
    with load(teachable, backend=engine) as classifier:
        classifier.teach("mug", photos(3, 2))
        classifier.teach("cup", photos(4, 7))
        classifier.forget(LABELS[1])
        classifier.relabel("cup", "beaker")
        classifier.teach("beaker", photos(5, 1), add=True)
        asked = [photo(seed) for seed in range(20)]
        assert classifier._head._teacher is not None

        expected = classifier._head._teacher.head.logits(classifier.embed(asked))

        assert np.abs(classifier.logits(asked) - expected).max() < 1e-5 * np.abs(expected).max()
        assert classifier.labels == (LABELS[0], *LABELS[2:], "mug", "beaker")
        classifier.save()


def test_alpha_and_beta_are_those_of_a_calibration_over_all_keys(classifier: Classifier) -> None:
    found = classifier.teach("mug", photos(3))

    assert classifier._head._teacher is not None
    assert found == calibrate(classifier._head._teacher.head)
    assert found is not None
    assert (found.alpha, found.beta) == (classifier._head._teacher.head.alpha, classifier._head._teacher.head.beta)


def test_alpha_and_beta_stay_where_that_is_asked_for(classifier: Classifier) -> None:
    assert classifier.teach("mug", photos(3), calibrate=False) is None

    assert classifier._head._teacher is not None
    assert (classifier._head._teacher.head.alpha, classifier._head._teacher.head.beta) == (1.5, 4.0)


def test_a_bundle_without_a_cache_has_one_once_it_is_taught(tmp_path: Path) -> None:
    bundle = make_teachable(tmp_path / "bare", sample_head(shots=0, uses_cache=False))

    with load(bundle, backend="ort") as classifier:
        classifier.teach("mug", photos(3), calibrate=False)
        classifier.save()

        assert classifier._head._teacher is not None
        assert classifier._head._teacher.head.alpha == START["alpha"]
        assert np.isfinite(classifier.logits(photo(1))).all()


def test_unsaved_changes_are_told_when_the_classifier_closes(teachable: Path) -> None:
    classifier = load(teachable, backend="ort")
    classifier.teach("mug", photos(3))

    with pytest.warns(CalipsoWarning, match="closed before what it was taught was saved") as told:
        classifier.close()

    assert told[0].filename == __file__
    with load(teachable, backend="ort") as again:
        assert again.labels == LABELS


def test_teaching_touches_no_file_of_the_bundle_itself(teachable: Path) -> None:
    before = {path.name: path.read_bytes() for path in teachable.iterdir()}

    with load(teachable, backend="ort") as classifier:
        classifier.teach("mug", photos(3))
        classifier.save()

    assert {path.name: path.read_bytes() for path in teachable.iterdir() if path.is_file()} == before
    assert [path.name for path in teachable.iterdir() if path.is_dir()] == [FOLDER]
    open_bundle(teachable)


def test_a_folder_beside_a_read_only_bundle_keeps_what_it_is_taught(teachable: Path, tmp_path: Path) -> None:
    with load(teachable, backend="ort", taught=tmp_path / "beside") as classifier:
        classifier.teach("mug", photos(3))
        classifier.save()

    assert not (teachable / FOLDER).exists()
    with load(teachable, backend="ort", taught=str(tmp_path / "beside")) as again:
        assert again.labels[-1] == "mug"
    with load(teachable, backend="ort") as plain:
        assert plain.labels == LABELS


def test_a_folder_that_cannot_be_written_is_told_with_the_way_out(teachable: Path) -> None:
    with load(teachable, backend="ort") as classifier:
        (teachable / FOLDER).write_text("a file in its way")

        with pytest.raises(TeachingError, match="name a folder"):
            classifier.teach("mug", photos(3))

        assert classifier.labels == LABELS


def test_what_was_taught_can_be_left_aside(teachable: Path) -> None:
    with load(teachable, backend="ort") as classifier:
        classifier.teach("mug", photos(3))
        classifier.save()

    with load(teachable, backend="ort", taught=False) as plain:
        assert plain.labels == LABELS
        plain.teach("cup", photos(4))
        with pytest.raises(TeachingError, match="taught=False"):
            plain.save()


def test_a_forgotten_class_is_gone_from_the_disk(teachable: Path) -> None:
    with load(teachable, backend="ort") as classifier:
        classifier.teach("mug", photos(3))
        classifier.save()
        features = classifier.embed(photos(3))
        assert features.tobytes() in (teachable / FOLDER / CHANGES_FILE).read_bytes()

        classifier.forget("mug")
        classifier.save()

        left = (teachable / FOLDER / CHANGES_FILE).read_bytes()
        assert all(row.tobytes() not in left for row in features)
    with load(teachable, backend="ort") as again:
        assert again.labels == LABELS


def test_a_journal_that_has_grown_is_rewritten(teachable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calipso_runtime.head.teacher._LEAST_GROWN_BYTES", 1)
    sizes = []
    with load(teachable, backend="ort") as classifier:
        classifier.teach("mug", photos(3))
        for number in range(40):
            classifier.relabel("mug" if number == 0 else f"mug {number - 1}", f"mug {number}")
            classifier.save()
            sizes.append((teachable / FOLDER / CHANGES_FILE).stat().st_size)

    assert min(np.diff(sizes)) < 0
    with load(teachable, backend="ort") as again:
        assert again.labels[-1] == "mug 39"


def test_a_journal_that_was_cut_is_told_and_loads_what_is_whole(teachable: Path) -> None:
    with load(teachable, backend="ort") as classifier:
        classifier.teach("mug", photos(3))
        classifier.save()
        classifier.teach("cup", photos(4))
        classifier.save()
    path = teachable / FOLDER / CHANGES_FILE
    path.write_bytes(path.read_bytes()[:-7])

    with pytest.warns(CalipsoWarning, match="ends in the middle of a record"):
        again = load(teachable, backend="ort")

    assert again.labels == (*LABELS, "mug")
    again.close()


def test_two_classifiers_do_not_teach_one_bundle(teachable: Path) -> None:
    with load(teachable, backend="ort") as first, load(teachable, backend="ort") as second:
        first.teach("mug", photos(3))

        with pytest.raises(TeachingError, match="one at a time"):
            second.teach("cup", photos(4))

        first.save()


def test_two_processes_do_not_teach_one_bundle(teachable: Path) -> None:
    other = (
        "import sys, pathlib\n"
        "from calipso_runtime.head.journal import Journal, JournalWriter\n"
        "writer = JournalWriter(pathlib.Path(sys.argv[1]), sys.argv[2], Journal())\n"
        "print('held', flush=True)\nsys.stdin.read()\n"
    )
    with load(teachable, backend="ort") as classifier:
        digest = classifier.manifest.head["sha256"]
        command = [sys.executable, "-c", other, teachable / FOLDER, digest]
        with child(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"

            with pytest.raises(TeachingError, match=f"process {process.pid}"):
                classifier.teach("mug", photos(3))
        # The lock goes with the process.
        classifier.teach("mug", photos(3))
        classifier.save()


def test_a_second_process_that_loaded_before_has_to_load_again(teachable: Path) -> None:
    with load(teachable, backend="ort") as early:
        with load(teachable, backend="ort") as first:
            first.teach("mug", photos(3))
            first.save()

        with pytest.raises(TeachingError, match="load the bundle again"):
            early.teach("cup", photos(4))


def test_calls_meanwhile_answer_with_the_classes_before_or_after(teachable: Path, engine: str) -> None:
    stop, wrong = threading.Event(), []
    with load(teachable, backend=engine) as classifier:
        asked = photos(3, 3)
        classes = len(LABELS)

        def ask() -> None:
            while not stop.is_set():
                for prediction in classifier.classify(asked, top=50, batch=1):
                    found = {score.label for score in prediction.scores}
                    named = {label for label in found if label.startswith("mug")}
                    if len(found) - len(named) != classes or len(named) > 1:
                        wrong.append(found)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for number in range(6):
            # Of other sizes each time: more keys per class, then fewer again.
            classifier.teach("mug", photos(number, 2 + number), calibrate=False)
            classifier.relabel("mug", "mug again")
            classifier.forget("mug again", calibrate=False)
        stop.set()
        for thread in threads:
            thread.join()
        classifier.save()

    assert not wrong


def test_a_photo_that_another_class_has_is_told_with_the_pair(classifier: Classifier) -> None:
    classifier.teach("mug", photos(3))
    copies = [photo(9), photos(3)[2]]

    with pytest.warns(CalipsoWarning, match=r"images\[1\] is photo 2 of 'mug' \(cosine ") as told:
        classifier.teach("cup", copies)

    # The last digits depend on the CPU.
    cosine = re.search(r"cosine (\S+)\)", str(told[0].message))
    assert cosine
    assert float(cosine[1]) == pytest.approx(1, abs=1e-5)
    assert told[0].filename == __file__


def test_one_photo_is_taken_with_a_warning(classifier: Classifier) -> None:
    with pytest.warns(CalipsoWarning, match="'mug' has one photo only") as told:
        classifier.teach("mug", photo(3))

    assert told[0].filename == __file__
    assert classifier.labels[-1] == "mug"


@pytest.mark.parametrize(
    ("label", "images", "kind", "reason"),
    [
        ("mug", [], InputError, "empty list: expected at least one picture"),
        (LABELS[0], photos(3), UsageError, "there is a class 'tulip'"),
        ("", photos(3), InputError, "expected a name"),
        (" mug", photos(3), InputError, "without spaces around it"),
        ("mug\n", photos(3), InputError, "printable"),
        ("mug", [np.full((3, 16, 16), np.nan, np.float32)], InputError, "nan"),
    ],
)
def test_what_cannot_be_taught_is_refused_and_changes_nothing(
    classifier: Classifier, label: str, images: list[np.ndarray], kind: type[Exception], reason: str
) -> None:
    with pytest.raises(kind, match=reason):
        classifier.teach(label, images)

    assert classifier.labels == LABELS


def test_a_text_feature_that_is_none_is_refused(classifier: Classifier) -> None:
    with pytest.raises(InputError, match="the text feature"):
        classifier.teach("mug", photos(3), text=np.full(EMBED_DIM, np.nan, np.float32))

    assert classifier.labels == LABELS


def test_a_class_that_is_not_there_is_told_with_the_nearest(classifier: Classifier) -> None:
    with pytest.raises(UsageError, match="did you mean 'tulip'"):
        classifier.forget("tulpi")
    with pytest.raises(UsageError, match="there is no class 'mug'"):
        classifier.relabel("mug", "cup")
    with pytest.raises(UsageError, match="there is a class of that name"):
        classifier.relabel("tulip", "daisy")


def test_a_baked_bundle_says_how_to_export_one_that_can_be_taught(tiny: Path) -> None:
    with load(tiny, backend="ort") as classifier, pytest.raises(TeachingError, match="--head-mode inputs"):
        classifier.teach("mug", photos(3))


def test_a_bare_graph_takes_its_head_from_the_file_beside_it(teachable: Path) -> None:
    (teachable / "manifest.json").unlink()

    with load(teachable / "model.onnx", backend="ort") as classifier:
        assert classifier.labels == LABELS
        assert np.isfinite(classifier.logits(photo(1))).all()


def test_a_head_that_is_missing_or_another_one_is_refused(teachable: Path) -> None:
    (teachable / "manifest.json").unlink()
    other = make_teachable(teachable.parent / "other", sample_head(seed=5))
    shutil.copyfile(other / HEAD_FILE, teachable / HEAD_FILE)

    with pytest.raises(BundleCorruptError, match="its sha256 is another"):
        load(teachable / "model.onnx", backend="ort")
    (teachable / HEAD_FILE).unlink()
    with pytest.raises(BundleCorruptError, match="is missing"):
        load(teachable / "model.onnx", backend="ort")


def test_an_engine_that_takes_no_head_says_so(teachable: Path) -> None:
    with pytest.raises(BackendUnavailableError, match="does not take graphs of several inputs"):
        load(teachable, backend="ort-tensorrt")


def test_a_journal_that_does_not_fit_is_refused(teachable: Path) -> None:
    with load(teachable, backend="ort") as classifier:
        classifier.teach("mug", photos(3))
        classifier.save()
        assert classifier._head._teacher is not None
        # As a newer version might write it.
        record = classifier._head._teacher._writer
        assert record is not None
        from calipso_runtime.head.journal import Record

        record.append([Record(what="dream", fields={})])

    with pytest.raises(BundleCorruptError, match="do not fit this bundle"):
        load(teachable, backend="ort")


def test_a_class_with_a_text_feature_is_scored_by_it(classifier: Classifier) -> None:
    text = unit(np.random.default_rng(1), EMBED_DIM)

    classifier.teach("mug", photos(3), text=text)

    assert classifier._head._teacher is not None
    assert np.array_equal(classifier._head._teacher.head.weights[-1], text)
