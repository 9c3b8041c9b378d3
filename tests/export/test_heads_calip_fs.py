"""CALIP-FS: the formula layer by layer, CALIP until something is learned, and left out where it does not pay."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_samples import CALIP_HEADS, MakeConfig, unit_vectors
from hypothesis import given, settings
from test_heads_calip import published, sample, softmax
from test_points_export import write_clouds

from calipso_export import export
from calipso_export.fewshot import encode
from calipso_export.fewshot.features import PhotoFeatures
from calipso_export.heads import calip_fs
from calipso_export.heads.calip import CalipParameters
from calipso_export.heads.calip_fs import CalipFsHead, Learned, fit, terms, unfolded
from calipso_export.heads.few_shot import Shots
from calipso_export.heads.zero_shot import ZeroShotHead
from calipso_export.pipeline import run_steps
from calipso_export.progress import Progress, silent
from calipso_export.reference import HeadTensors
from calipso_export.reverify import reverify
from calipso_export.steps import STEPS
from calipso_export.steps import tune as tune_step
from calipso_export.steps.tune import HeadRecord, Tune
from calipso_runtime.errors import ShotsError, UsageError
from calipso_runtime.graph_file import MODEL_FILE

UP_TO_TUNE = STEPS[: [type(step) for step in STEPS].index(Tune) + 1]
PARAMETERS = CalipParameters(b2=1.0, b3=0.1)
CLASSES, EACH, POSITIONS, WIDTH, SCALE = 3, 8, 5, 128, 10.0


def learned_layers(seed: int, width: int) -> torch.Tensor:
    noise = np.random.default_rng(seed).standard_normal((4, width, width)) * 0.3
    return torch.eye(width) + torch.from_numpy(noise).float()


def layer_by_layer(
    image: np.ndarray, tokens: np.ndarray, text: np.ndarray, layers: np.ndarray, *, scale: float, b2: float, b3: float
) -> np.ndarray:
    """Queries, keys and values of both modalities, two attentions, one projection behind both."""
    query, key, value, post = layers.astype(np.float64)
    rows = []
    for f, F in zip(image.astype(np.float64), tokens.astype(np.float64), strict=True):
        T = text.astype(np.float64)
        Ta = softmax(2 * (T @ query) @ (F @ key).T, axis=1) @ (F @ value) @ post
        V = softmax(2 * (F @ query) @ (T @ key).T, axis=1) @ (T @ value) @ post
        v = V.mean(axis=0) + V.max(axis=0)
        rows.append(b2 * scale * (Ta @ f) + b3 * scale * (T @ v))
    return np.stack(rows)


@settings(max_examples=60, deadline=None)
@given(**CALIP_HEADS)
def test_all_forms_are_the_loop_layer_by_layer(
    *, seed: int, pictures: int, positions: int, classes: int, width: int, scale: float, b2: float, b3: float
) -> None:
    arrays = sample(seed, pictures, positions, classes, width)
    image, tokens, text = map(torch.from_numpy, arrays)
    layers, parameters = learned_layers(seed, width), CalipParameters(b2=b2, b3=b3)
    weight = ZeroShotHead(text, scale=scale).weight

    wanted = layer_by_layer(*arrays, layers.numpy(), scale=scale, b2=b2, b3=b3)
    head = CalipFsHead(parameters, layers, scale=scale)
    through_image, through_text = terms(image, tokens, text, layers, scale=scale).unbind(dim=1)
    given_back = unfolded(head.match, head.carry)

    size = float(layers.norm(dim=(1, 2)).max()) ** 2
    tolerance = 3e-6 * scale * size * (b2 + 2 * b3) + 1e-6
    exact = [each.double() for each in (image, tokens, text, layers)]
    for found in (
        head(image, tokens, weight),
        b2 * through_image + b3 * through_text,
        calip_fs.reference(*exact, parameters, scale=scale),
        calip_fs.reference(image, tokens, text, given_back, parameters, scale=scale),
    ):
        np.testing.assert_allclose(found.numpy(), wanted, atol=tolerance)


@settings(max_examples=20, deadline=None)
@given(**CALIP_HEADS)
def test_with_nothing_learned_it_is_calip(
    *, seed: int, pictures: int, positions: int, classes: int, width: int, scale: float, b2: float, b3: float
) -> None:
    arrays = sample(seed, pictures, positions, classes, width)
    image, tokens, text = map(torch.from_numpy, arrays)
    head = CalipFsHead(CalipParameters(b2=b2, b3=b3), torch.eye(width).expand(4, -1, -1), scale=scale)

    added = head(image, tokens, ZeroShotHead(text, scale=scale).weight)

    tolerance = 3e-6 * scale * (b2 + 2 * b3) + 1e-6
    np.testing.assert_allclose(added.numpy(), published(*arrays, scale=scale, b2=b2, b3=b3), atol=tolerance)


def test_the_centred_form_is_lower_by_the_same_number_for_all_classes() -> None:
    image, tokens, text = map(torch.from_numpy, sample(0, 2, 7, 5, 16))
    layers, weight = learned_layers(0, 16), ZeroShotHead(text, scale=SCALE).weight

    plain, centred = (
        CalipFsHead(PARAMETERS, layers, scale=SCALE, centred=is_centred)(image, tokens, weight)
        for is_centred in (False, True)
    )
    restated = calip_fs.reference(image, tokens, text, layers, PARAMETERS, scale=SCALE, centred=True)

    difference = plain - centred
    torch.testing.assert_close(difference, difference[:, :1].expand_as(difference), atol=1e-5, rtol=0)
    assert float(difference.abs().min()) > 1e-3
    torch.testing.assert_close(centred, restated, atol=1e-5, rtol=1e-5)


def shots_with_a_mark(folder: Path | None = None, *, seed: int = 0, is_marked: bool = True) -> Shots:
    """The class stands in one token of each photo, in a direction that the text does not know; the rest is noise."""
    rng = np.random.default_rng(seed)
    text = torch.from_numpy(unit_vectors(np.random.default_rng(9), CLASSES, WIDTH))
    marks = torch.from_numpy(unit_vectors(np.random.default_rng(8), CLASSES, WIDTH))
    labels = torch.arange(CLASSES).repeat_interleave(EACH)
    tokens = torch.from_numpy(unit_vectors(rng, len(labels), POSITIONS, WIDTH))
    if is_marked:
        tokens[:, 0] = torch.nn.functional.normalize(marks[labels] + 0.1 * tokens[:, 0], dim=-1)
    plain = torch.from_numpy(unit_vectors(rng, len(labels), WIDTH))
    photos = PhotoFeatures(
        labels=labels,
        contents=torch.arange(len(labels)),
        keys=plain,
        plain=plain,
        calip=torch.empty(len(labels), 2, CLASSES),
        tokens=tokens,
    )
    names = tuple(f"class {index}" for index in range(CLASSES))
    return Shots(photos=photos, text=text, scale=SCALE, bias=0.0, classes=names, folder=folder)


def fitted(shots: Shots, progress: Progress = silent) -> Learned:
    return fit(shots, shots.zero_shot(shots.photos), CalipParameters(b2=1.0, b3=0.5), progress)


def test_the_layers_learn_what_the_tokens_tell_and_the_record_is_of_photos_held_out() -> None:
    shots, unseen = shots_with_a_mark(), shots_with_a_mark(seed=1)
    learned = fitted(shots)

    assert learned.layers is not None
    base = shots.zero_shot(unseen.photos)
    added = terms(unseen.photos.plain, unseen.photos.tokens, shots.text, learned.layers, scale=SCALE)
    weights = torch.tensor([1.0, 0.5])[:, None]
    accuracy = [
        float((logits.argmax(dim=1) == shots.photos.labels).double().mean())
        for logits in (base, base + (weights * added).sum(dim=1))
    ]
    assert accuracy[1] > accuracy[0] + 0.1
    said = shots.zero_shot(shots.photos) + (weights * learned.held_out).sum(dim=1)
    judged = float((said.argmax(dim=1) == shots.photos.labels).double().mean())
    assert judged == pytest.approx(learned.record["accuracy_with"])
    assert [point["epoch"] for point in learned.curve] == list(range(21))
    at_best = next(point for point in learned.curve if point["epoch"] == learned.record["best"]["epoch"])
    assert at_best["accuracy"] == learned.record["accuracy_with"] > learned.record["accuracy_without"]
    assert learned.curve[-1]["loss"] < learned.curve[1]["loss"]


def test_layers_that_do_not_pay_are_left_out() -> None:
    shots = shots_with_a_mark(is_marked=False)
    clear = shots.text[shots.photos.labels]

    learned = fitted(dataclasses.replace(shots, photos=dataclasses.replace(shots.photos, plain=clear)))

    assert learned.layers is None
    assert learned.record["kept"] is False
    assert (learned.record["accuracy_without"], len(learned.curve)) == (1.0, 21)


def test_what_is_said_of_a_photo_held_out_does_not_know_its_label() -> None:
    shots = shots_with_a_mark()
    photos = shots.photos
    swapped = photos.labels.clone()
    # Two photos of one fold change their labels: what is said of them stays.
    (held, *_) = calip_fs.folds(photos.labels, photos.contents, shots.classes)
    first = next(int(row) for row in held if photos.labels[row] == 0)
    other = next(int(row) for row in held if photos.labels[row] == 1)
    swapped[[first, other]] = photos.labels[[other, first]]
    training = calip_fs._Training(shots, shots.zero_shot(photos), PARAMETERS)
    poisoned = dataclasses.replace(shots, photos=dataclasses.replace(photos, labels=swapped))
    again = calip_fs._Training(poisoned, shots.zero_shot(photos), PARAMETERS)
    rest = calip_fs._others(held, len(photos.labels))

    assert torch.equal(*(each.run(rest, "", silent, epochs=3).weights for each in (training, again)))


def test_an_interrupted_training_goes_on_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = fitted(shots_with_a_mark())
    reports: list[int] = []

    def interrupt(_what: str, done: int, _total: int) -> None:
        reports.append(done)
        if len(reports) == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted(shots_with_a_mark(tmp_path), interrupt)
    resumed_from: list[tuple[str, int]] = []
    resumed = fitted(shots_with_a_mark(tmp_path), lambda what, done, _total: resumed_from.append((what, done)))

    assert whole.layers is not None
    assert resumed.layers is not None
    assert torch.equal(resumed.layers, whole.layers)
    assert resumed.record == whole.record
    # Of the first fold, which was through, nothing but its end is told.
    first = [done for what, done in resumed_from if "fold 1 of" in what]
    assert first == [20]


def test_a_class_of_one_photo_is_named() -> None:
    shots = shots_with_a_mark()
    one = dataclasses.replace(shots, photos=shots.photos.rows(torch.arange(EACH - 1, CLASSES * EACH)))

    with pytest.raises(ShotsError, match=r"one photo only of 'class 0'"):
        fitted(one)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"head_mode": "inputs"}, "CALIP does not go with head_mode inputs.*--calip-fs"),
        ({"calip": False, "b2": None, "b3": None}, "switched off: leave out --no-calip"),
        ({"b2": 0.0, "b3": 0.0}, "b2 and b3 are 0: leave them out"),
        ({"shots": None, "alpha": None, "beta": None}, "none to learn on: give --shots DIR"),
        ({"unknown_at": 0.1}, "does not go with unknown_at: layers know .* Leave one out"),
    ],
)
def test_what_it_does_not_go_with_is_refused(make_config: MakeConfig, changes: dict[str, object], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        make_config(calip_fs=True, **changes)


def test_more_tokens_than_memory_is_kept_for_are_refused_before_any_is_encoded(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "MOST_TOKEN_BYTES", 9 * 16 * 32 * 4 - 1)

    with pytest.raises(ShotsError, match=r"9 photos of 16 tokens of 32 numbers .* leave out --calip-fs"):
        run_steps(UP_TO_TUNE, make_config(calip_fs=True), silent)


@pytest.mark.parametrize("searched", [False, True])
def test_where_the_layers_do_not_pay_calip_stays_as_it_is(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, searched: bool
) -> None:
    monkeypatch.setattr(tune_step, "fit_layers", lambda *given: dataclasses.replace(fit(*given), layers=None))
    changes = dict.fromkeys(("b2", "b3")) if searched else {}
    plain, asked = (
        run_steps(UP_TO_TUNE, make_config(calip_fs=is_asked, **changes, output=tmp_path / f"{is_asked}.out"), silent)
        for is_asked in (False, True)
    )

    assert asked[HeadRecord].document["calip_fs"]["reason"] == "no better on the validation photos"
    assert asked[HeadRecord].document["calip"] == plain[HeadRecord].document["calip"]
    assert asked[HeadTensors].calip == plain[HeadTensors].calip
    assert (asked[HeadTensors].layers, "calip_fs" in plain[HeadRecord].document) == (None, False)
    assert asked[PhotoFeatures].tokens.numel() == 0
    assert torch.equal(asked[Shots].photos.calip, plain[Shots].photos.calip)


def keep_them_whatever_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """On noise nothing pays: the layers of the last epoch stand for such as do."""

    def kept(shots: Shots, base: torch.Tensor, parameters: CalipParameters, progress: Progress) -> Learned:
        learned = fit(shots, base, parameters, progress)
        training = calip_fs._Training(shots, base, parameters)
        rows = torch.arange(len(base))
        layers = calip_fs._layers(10 * training.run(rows, "again", progress).weights)
        record = {**learned.record, "kept": True, "best": {"epoch": 20}}
        return dataclasses.replace(learned, layers=layers, held_out=training.terms_of(rows, layers), record=record)

    monkeypatch.setattr(tune_step, "fit_layers", kept)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"precision": "fp16"}, {"precision": "bf16"}, {"b2": None, "b3": None}])
def test_it_is_exported_verified_and_read_back_from_its_file(
    make_config: MakeConfig,
    tiny_vit: Path,
    shots: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, object],
) -> None:
    keep_them_whatever_they_say(monkeypatch)
    config = make_config(calip_fs=True, **changes)

    manifest, parity = export(config)
    again = reverify(config.output, data=shots, checkpoint=None, model=str(tiny_vit), backend="ort", progress=silent)

    assert (parity.status, again.status) == ("passed", "passed")
    assert (manifest.head["calip"]["used"], manifest.head["calip_fs"]["used"]) == (True, True)
    assert manifest.head["calip_fs"]["epoch"] == 20
    if not changes:
        assert parity.document["worst"]["relative_logit_error"] < 1e-5
        assert again.document["worst"]["relative_logit_error"] < 1e-5
    graph = onnx.load(config.output / MODEL_FILE).graph
    own = {tensor.name: tensor.data_type for tensor in graph.initializer if tensor.name.startswith("calip.")}
    assert {own["calip.match"], own["calip.carry"]} == {onnx.TensorProto.FLOAT}
    page = (config.output / "report.html").read_text()
    assert "<h3>CALIP-FS</h3>" in page
    assert "Training loss from" in page


@pytest.mark.slow
def test_it_takes_the_tokens_of_all_views_of_a_cloud(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_them_whatever_they_say(monkeypatch)
    clouds = write_clouds(tmp_path / "clouds")
    config = make_config(calip_fs=True, input="points", points=48, templates="depth-map", shots=clouds)

    manifest, parity = export(config)

    assert (parity.status, manifest.head["calip_fs"]["used"]) == ("passed", True)


@pytest.mark.slow
def test_a_file_with_other_layers_than_its_reference_is_found_out(
    make_config: MakeConfig, tiny_vit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_them_whatever_they_say(monkeypatch)
    config = make_config(calip_fs=True, force=True)
    export(config)
    monkeypatch.setattr("calipso_export.rebuild.unfolded", lambda match, carry: unfolded(match.T, carry))

    again = reverify(config.output, data=None, checkpoint=None, model=str(tiny_vit), backend="ort", progress=silent)

    assert again.failures
