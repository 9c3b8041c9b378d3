"""Every few-shot head of the table: exported, verified, read back from its file, and chosen on the shots alone."""

import dataclasses
import json
from pathlib import Path

import onnx
import pytest
import torch
from export_samples import HEAD, MakeConfig, write_shots

from calipso_export import export
from calipso_export.fewshot.choose import choose_head
from calipso_export.fewshot.features import PhotoFeatures
from calipso_export.heads import FEW_SHOT, attribute, few_shot_class
from calipso_export.heads.few_shot import FewShotHead, Fit, Shots
from calipso_export.heads.tip_adapter import TipAdapter
from calipso_export.pipeline import run_steps
from calipso_export.progress import Progress, silent
from calipso_export.rebuild import rebuild
from calipso_export.reference import HeadTensors
from calipso_export.reverify import reverify
from calipso_export.steps import STEPS
from calipso_export.steps.tune import HeadRecord, Tune
from calipso_runtime.bundle import MANIFEST_FILE
from calipso_runtime.errors import ModelError
from calipso_runtime.graph_file import MODEL_FILE
from calipso_runtime.manifest import read_manifest

UP_TO_TUNE = STEPS[: [type(step) for step in STEPS].index(Tune) + 1]


@pytest.mark.parametrize("name", FEW_SHOT)
def test_every_head_has_the_name_of_its_line(name: str) -> None:
    assert few_shot_class(name).name == name


def test_a_head_of_a_newer_version_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"no head 'oracle' in this version: it has tip-adapter.*Upgrade calipso"):
        few_shot_class("oracle")


def test_the_head_of_a_bundle_that_knows_tip_adapter_alone_is_read_back(bundle: Path, tiny_vit: Path) -> None:
    manifest = read_manifest(bundle / MANIFEST_FILE)
    head = {name: record for name, record in manifest.head.items() if name != "few_shot"}
    first = dataclasses.replace(manifest, head=head)

    now, before = (
        rebuild(bundle, each, checkpoint=None, model=str(tiny_vit), progress=silent).heads.few_shot
        for each in (manifest, first)
    )

    assert isinstance(before, TipAdapter)
    assert isinstance(now, TipAdapter)
    assert torch.equal(before.keys, now.keys)
    assert before.parameters_by_name() == {key: HEAD[key] for key in ("alpha", "beta")}


@pytest.mark.slow
@pytest.mark.parametrize("name", FEW_SHOT)
def test_every_head_is_exported_verified_and_read_back_from_its_file(
    make_config: MakeConfig, tiny_vit: Path, shots: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_whatever_it_says(monkeypatch, name)
    config = make_config(head=name, outputs=("logits", "embedding"), **dict.fromkeys(("alpha", "beta")))

    manifest, parity = export(config)
    again = reverify(config.output, data=shots, checkpoint=None, model=str(tiny_vit), backend="ort", progress=silent)

    assert (parity.status, again.status) == ("passed", "passed")
    assert (manifest.few_shot["name"], manifest.few_shot["used"]) == (name, True)
    assert manifest.head["tip_adapter"]["used"] is (name == "tip-adapter")
    graph = onnx.load(config.output / MODEL_FILE).graph
    own = [tensor.name for tensor in graph.initializer if tensor.name.startswith(f"{attribute(name)}.")]
    assert own
    # Without the head the file does not answer like its reference: what was compared is the head too.
    rebuilt = rebuild(config.output, manifest, checkpoint=None, model=str(tiny_vit), progress=silent)
    assert rebuilt.heads.few_shot is not None
    image = torch.nn.functional.normalize(torch.ones(1, 32), dim=1)
    assert rebuilt.heads.few_shot(image, rebuilt.heads.text, rebuilt.model.scale).abs().max() > 1e-4
    assert few_shot_class(name).title in (config.output / "report.html").read_text()


def keep_whatever_it_says(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """On noise no head is better than zero-shot: it is fitted on photos that lie around their class instead."""
    fit = few_shot_class(name).fit

    def fit_on_clusters(shots: Shots, progress: Progress) -> Fit:
        classes = len(shots.classes)
        photos = clusters(classes, len(shots.photos.labels) // classes, shots.text.shape[1])
        return fit(dataclasses.replace(shots, photos=photos, folder=None), progress)

    monkeypatch.setattr(few_shot_class(name), "fit", staticmethod(fit_on_clusters))


def clusters(classes: int, each: int, width: int, views: int = 2, seed: int = 0) -> PhotoFeatures:
    """Photos around one centre per class: any few-shot head should tell them apart."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=generator)
    labels = torch.arange(classes).repeat_interleave(each)

    def near(*shape: int) -> torch.Tensor:
        noise = 0.4 * torch.randn(len(labels), *shape, width, generator=generator)
        own = centres[labels] if not shape else centres[labels][:, None]
        return torch.nn.functional.normalize(own + noise, dim=-1)

    return PhotoFeatures(
        labels=labels,
        contents=torch.arange(len(labels)),
        keys=near(),
        plain=near(),
        calip=torch.empty(len(labels), 0, classes),
        views=near(views),
    )


def shots_of(photos: PhotoFeatures, *, text: torch.Tensor | None = None, folder: Path | None = None) -> Shots:
    """With a text that says nothing, so that all depends on the head."""
    classes = int(photos.labels.max()) + 1
    silent_text = torch.nn.functional.normalize(torch.ones(classes, photos.plain.shape[1]), dim=1)
    return Shots(
        photos=photos,
        text=silent_text if text is None else text,
        scale=10.0,
        bias=0.0,
        classes=tuple(f"class {index}" for index in range(classes)),
        folder=folder,
    )


# CLIP-Adapter moves a feature among the texts: where these are all the same there is nowhere to go.
@pytest.mark.parametrize("name", [name for name in FEW_SHOT if name != "clip-adapter"])
def test_every_head_learns_from_clear_photos_and_both_its_forms_agree(name: str) -> None:
    shots = shots_of(clusters(4, 6, 16))
    head = few_shot_class(name).fit(shots, silent).head
    unseen = clusters(4, 5, 16).plain

    assert head is not None
    published = head(unseen, shots.text, shots.scale)
    folded = head.fold(shots.text, shots.scale)(unseen, (shots.scale * shots.text).T)

    assert float((published.argmax(dim=1) == clusters(4, 5, 16).labels).double().mean()) > 0.8
    torch.testing.assert_close(folded, published, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FEW_SHOT)
def test_what_is_said_of_a_photo_held_out_does_not_know_its_label(name: str) -> None:
    # Pure noise, each photo its own key: who has seen a photo knows it, who has not can only guess.
    noise = torch.nn.functional.normalize(torch.randn(36, 64, generator=torch.Generator().manual_seed(1)), dim=1)
    labels = torch.arange(3).repeat_interleave(12)
    photos = dataclasses.replace(clusters(3, 12, 64), keys=noise, plain=noise, views=noise[:, None])
    rows = torch.arange(36)

    said = few_shot_class(name).fit(shots_of(photos), silent).held_out(rows)

    assert float((said.argmax(dim=1) == labels).double().mean()) < 0.7


@pytest.mark.parametrize("name", FEW_SHOT)
def test_every_fit_is_fitted_to_other_shots_with_the_same_settings(name: str) -> None:
    generator = torch.Generator().manual_seed(2)
    text = torch.nn.functional.normalize(torch.randn(4, 16, generator=generator), dim=1)
    shots, others = (shots_of(clusters(4, 6, 16, seed=seed), text=text) for seed in (0, 1))

    fit = few_shot_class(name).fit(shots, silent)
    same, other = fit.refit(shots), fit.refit(others)

    assert fit.head is not None
    assert state_of(same) == state_of(fit.head)
    assert settings_of(other) == settings_of(fit.head)
    assert state_of(other) != state_of(fit.head)


def state_of(head: FewShotHead) -> dict[str, list[float]]:
    return {name: value.tolist() for name, value in head.state_dict().items()}


def settings_of(head: FewShotHead) -> dict[str, float]:
    """What was chosen; the ends of Tip-X's ranges are measured on the shots."""
    return {name: value for name, value in head.parameters_by_name().items() if not name.endswith(("low", "high"))}


@pytest.mark.slow
def test_head_auto_takes_the_best_by_cross_validation_and_compares_in_pairs() -> None:
    shots = shots_of(clusters(4, 6, 16))

    chosen = choose_head(shots, silent)

    plain, *others = chosen.candidates
    assert [each["name"] for each in chosen.candidates] == ["zero-shot", *FEW_SHOT]
    assert max(each["top1"] for each in others) == chosen.record["accuracy_with"] > plain["top1"]
    first = next(each for each in others if each["top1"] == chosen.record["accuracy_with"])
    assert (chosen.name, chosen.fit is not None) == (first["name"], True)
    assert first["gain"] == pytest.approx(first["top1"] - plain["top1"])
    assert first["gain_interval_95"][0] > 0


@pytest.mark.slow
def test_head_auto_falls_back_to_zero_shot_where_nothing_is_better() -> None:
    photos = clusters(3, 4, 16)
    centres = torch.stack([photos.plain[photos.labels == index].mean(dim=0) for index in range(3)])
    shots = dataclasses.replace(shots_of(photos, text=torch.nn.functional.normalize(centres, dim=1)), scale=100.0)

    chosen = choose_head(shots, silent)

    assert (chosen.candidates[0]["top1"], chosen.record["kept"], chosen.fit) == (1.0, False, None)


def test_head_auto_takes_tip_adapter_where_a_class_has_a_single_photo() -> None:
    photos = clusters(3, 3, 16).rows(torch.tensor([0, 3, 4, 5, 6, 7, 8]))

    chosen = choose_head(shots_of(photos), silent)

    assert (chosen.name, chosen.candidates) == ("tip-adapter", [])
    assert chosen.fit is not None
    assert chosen.fit.head is not None


def test_head_auto_compares_with_two_photos_of_each_class_what_takes_one() -> None:
    photos = clusters(3, 2, 16)

    chosen = choose_head(shots_of(photos), silent)

    judged = {each["name"] for each in chosen.candidates if "left_out" not in each}
    assert {"zero-shot", "tip-adapter", "proker"} <= judged


@pytest.mark.slow
def test_head_auto_never_looks_at_the_pictures_to_verify_on(make_config: MakeConfig, tmp_path: Path) -> None:
    right = write_shots(tmp_path / "right", count=2)
    poisoned = write_shots(tmp_path / "poisoned", ("bee", "crab", "ant"), count=2)
    searched = {"head": "auto", **dict.fromkeys(("alpha", "beta", "b2", "b3"))}

    records = []
    for data in (right, poisoned, None):
        made = run_steps(
            UP_TO_TUNE,
            make_config(verify_data=data, **searched, output=tmp_path / f"{len(records)}.out"),
            silent,
        )
        head = made[HeadTensors].few_shot
        tensors = {} if head is None else {name: value.tolist() for name, value in head.state_dict().items()}
        records.append((made[HeadRecord].document, made[HeadRecord].curves, tensors))

    assert records[0] == records[1] == records[2]
    candidates = records[0][1]["candidates"]
    assert [each["name"] for each in candidates] == ["zero-shot", *FEW_SHOT]
    assert records[0][0]["few_shot"]["chosen"]["photos"] == 9


@pytest.mark.slow
@pytest.mark.usefixtures("quick_trace")
def test_the_candidates_are_in_the_manifest_the_report_and_the_search(make_config: MakeConfig) -> None:
    config = make_config(head="auto", outputs=("logits", "embedding"), **dict.fromkeys(("alpha", "beta")))

    manifest, _ = export(config)

    candidates = manifest.few_shot["chosen"]["candidates"]
    assert json.loads((config.output / "search.json").read_text())["candidates"] == candidates
    page = (config.output / "report.html").read_text()
    for each in candidates:
        low, high = each["interval_95"]
        assert f"<td>{each['title']}</td><td>{each['top1']:.2%}</td><td>{low:.2%} to {high:.2%}</td>" in page
