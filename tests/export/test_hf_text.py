"""Tokenizers and text towers of Hugging Face from local folders: the same ids, features and refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from click.testing import CliRunner
from export_samples import CLASSES, TEXT, VIT, MakeConfig, noise, unit_vectors, write_model
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from calipso_export import ExportConfig, export
from calipso_export.models import LoadedModel, load_model
from calipso_export.tokenizers import write_tokenizer
from calipso_runtime import load as load_bundle
from calipso_runtime import load_embedder
from calipso_runtime.cli import calipso
from calipso_runtime.errors import ModelError
from calipso_runtime.tokenizer import Tokenizer

pytest.importorskip("transformers", reason="text models of Hugging Face")

from hf_samples import TOKENIZERS, bert, bert_model, m2m_100, many_languages, mt5, roberta, text_model, unigram
from transformers import AutoTokenizer

TEXTS = [
    "",
    "A Photo, of_a red-bird.",
    "an ant &amp;amp; a bee",
    "</s> <s> <pad> [SEP] [CLS] <unk> <mask> fra_Latn",
    "\u6771\u4eac\u90fd\u306e\u5199\u771f caf\u00e9 \u0130 \u00df \U0001f469\u200d\U0001f467 \0 \ud800",
    "bird " * 3,
    "bird " * 5_000,
    "x" * 10_000,
]
# The settings that open_clip's own models have, and the rest of what it knows.
SETTINGS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "canonicalize": {"clean": "canonicalize"},
    "lower": {"clean": "lower", "context_length": 64},
    "short": {"context_length": 8},
}
HF_TEXT = {"hf_model_name": "no/such-model", "hf_tokenizer_name": "no/such-tokenizer", "hf_pooler_type": "mean_pooler"}
HF = {**VIT, "text_cfg": HF_TEXT}
# What open_clip's models take from a hub: tokenizer, text model, and the configuration around them.
HUB: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Path], dict[str, Any]]] = {
    "roberta": (roberta, text_model, {"text_cfg": {"hf_proj_type": "mlp"}}),
    "mt5": (unigram, mt5, {"text_cfg": {"context_length": 20}}),
    "bert": (bert, bert_model, {"text_cfg": {"hf_pooler_type": "cls_pooler"}}),
    "m2m_100": (many_languages, m2m_100, {"text_cfg": {"hf_pooler_type": "cls_pooler"}}),
}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def exported(theirs: Any, folder: Path) -> Tokenizer:
    settings = write_tokenizer(theirs, folder / "tokenizer.json")
    return Tokenizer.from_file(folder / "tokenizer.json", settings.as_json())


def assert_equal(theirs: Any, ours: Tokenizer, texts: list[str]) -> None:
    wanted, found = theirs(texts).numpy(), ours(texts)

    assert [texts[row] for row in np.flatnonzero((wanted != found).any(axis=1))] == []


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("make", TOKENIZERS.values(), ids=TOKENIZERS)
def test_a_local_tokenizer_has_open_clips_ids(
    tmp_path: Path, make: Callable[[Path], Path], settings: dict[str, Any]
) -> None:
    theirs = open_clip.tokenizer.HFTokenizer(str(make(tmp_path / "hf")), **settings)

    assert_equal(theirs, exported(theirs, tmp_path), TEXTS)


@given(text=st.text(max_size=40))
def test_any_text_has_open_clips_ids(local: tuple[Any, Tokenizer], text: str) -> None:
    assert_equal(*local, [text])


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Tokenizer]:
    folder = tmp_path_factory.mktemp("local")
    theirs = open_clip.tokenizer.HFTokenizer(str(unigram(folder / "hf")), clean="canonicalize", context_length=64)
    return theirs, exported(theirs, folder)


def test_the_class_that_siglip_models_were_imported_with_is_known(tmp_path: Path) -> None:
    # Without what it does first: download a vocabulary.
    theirs = object.__new__(open_clip.tokenizer.SigLipTokenizer)
    theirs.tokenizer = AutoTokenizer.from_pretrained(unigram(tmp_path / "hf"))
    theirs.context_length = 64

    assert_equal(theirs, exported(theirs, tmp_path), TEXTS)


def test_separators_are_replaced_by_0_where_open_clip_does(tmp_path: Path) -> None:
    theirs = open_clip.tokenizer.HFTokenizer(str(bert(tmp_path / "hf")), context_length=32, strip_sep_token=True)
    ours = exported(theirs, tmp_path)

    assert_equal(theirs, ours, TEXTS)
    assert theirs.tokenizer.sep_token_id not in ours(TEXTS)


def test_the_mode_clips_puts_a_class_token_at_the_end(tmp_path: Path) -> None:
    folder = roberta(tmp_path / "hf")
    theirs = open_clip.tokenizer.HFTokenizer(str(folder), context_length=16, tokenizer_mode="clips")
    ours = exported(theirs, tmp_path)

    assert_equal(theirs, ours, TEXTS)
    assert ours.encode(TEXTS, truncation="silent").cut == (1, 3, 4, 6, 7)


def test_the_folders_language_stands_before_the_text(tmp_path: Path) -> None:
    first = set()
    for language in ("eng_Latn", "fra_Latn", "jpn_Jpan"):
        theirs = open_clip.tokenizer.HFTokenizer(str(many_languages(tmp_path / language, language)))
        ours = exported(theirs, tmp_path)
        assert_equal(theirs, ours, TEXTS)
        first.add(int(ours(["a"])[0, 0]))

    assert len(first) == 3


def test_a_language_that_is_set_later_means_as_little_as_to_open_clip(tmp_path: Path) -> None:
    # transformers goes back to the folder's language at every call.
    theirs = open_clip.tokenizer.HFTokenizer(str(many_languages(tmp_path / "hf")), language="fra_Latn")

    assert_equal(theirs, exported(theirs, tmp_path), TEXTS)


def test_an_earlier_call_of_the_tokenizer_leaves_no_trace(tmp_path: Path) -> None:
    theirs = open_clip.tokenizer.HFTokenizer(str(roberta(tmp_path / "hf")), context_length=16)
    before = write_tokenizer(theirs, tmp_path / "before.json")

    theirs(TEXTS, context_length=5)

    assert write_tokenizer(theirs, tmp_path / "after.json") == before


def test_a_tokenizer_without_a_token_that_the_model_needs_is_refused(tmp_path: Path) -> None:
    theirs = open_clip.tokenizer.HFTokenizer(str(unigram(tmp_path / "hf")), strip_sep_token=True)

    with pytest.raises(ModelError, match="has no sep_token, which the model needs"):
        write_tokenizer(theirs, tmp_path / "tokenizer.json")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the options name."""
    folder = tmp_path_factory.mktemp("hub")
    return {"tokenizer": roberta(folder / "tokenizer"), "text_model": text_model(folder / "text-model")}


@pytest.fixture(scope="module")
def tiny_hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration of a tiny ViT beside a text tower of Hugging Face."""
    return write_model(tmp_path_factory.mktemp("models") / "tiny-hf-text.json", HF)


def load(model: Path, **changes: Any) -> LoadedModel:
    weights = {} if "checkpoint" in changes else {"random_init": 0}
    return load_model(ExportConfig(model=str(model), classes=CLASSES, output=Path("unused"), **weights, **changes))


def test_what_has_to_be_downloaded_and_the_option_for_it_are_named(tiny_hf: Path, folders: dict[str, Path]) -> None:
    with pytest.raises(
        ModelError, match=r"[^.]\. Without a network, download config\.json of no/such-model .* with --text-model DIR"
    ):
        load(tiny_hf, tokenizer=folders["tokenizer"])
    with pytest.raises(
        ModelError,
        match=r"download tokenizer\.json .* of no/such-tokenizer .* --tokenizer DIR; or give .* --text-weights",
    ):
        load(tiny_hf, text_model=folders["text_model"])


def test_what_is_missing_is_said_before_the_model_is_built(
    tiny_hf: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_clip, "create_model", lambda *_, **__: pytest.fail("the model was built"))

    for given_folder in ("tokenizer", "text_model"):
        with pytest.raises(ModelError, match="Without a network"):
            load(tiny_hf, **{given_folder: folders[given_folder]})


def test_no_tokenizer_is_needed_where_text_features_are_given(tmp_path: Path) -> None:
    path = write_model(
        tmp_path / "tiny-siglip-like.json", {**VIT, "text_cfg": {**TEXT, "hf_tokenizer_name": "no/such"}}
    )

    model = load(path, text_weights=Path("features.npz"))

    assert model.module.text_projection is not None
    with pytest.raises(ModelError, match="the tokenizer of tiny-siglip-like cannot be loaded"):
        _ = model.tokenizer


def test_no_tokenizer_is_needed_where_no_prompt_is_encoded(tmp_path: Path) -> None:
    path = write_model(tmp_path / "tiny-silent.json", {**VIT, "text_cfg": {**TEXT, "hf_tokenizer_name": "no/such"}})
    config = ExportConfig(model=str(path), classes=CLASSES, output=Path("unused"), random_init=0)

    assert load_model(config, encodes_text=False).name == "tiny-silent"
    with pytest.raises(ModelError, match="the tokenizer of tiny-silent cannot be loaded"):
        load_model(config)


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"tokenizer": Path("lost")}, "--tokenizer is lost, which is no folder"),
        ({"text_model": Path("lost")}, "--text-model is lost, which is no folder"),
        ({"tokenizer": "an empty one"}, "the tokenizer of tiny-hf-text cannot be loaded"),
        (
            {"text_model": "an empty one"},
            r"cannot be built: .*Expected is config\.json of no/such-model in .*an empty one",
        ),
    ],
)
def test_a_folder_that_is_none_of_the_hubs_is_refused(
    tiny_hf: Path, folders: dict[str, Path], tmp_path: Path, changes: dict[str, Any], wrong: str
) -> None:
    (tmp_path / "an empty one").mkdir()
    changed = {name: tmp_path / path if isinstance(path, str) else path for name, path in changes.items()}

    with pytest.raises(ModelError, match=wrong):
        load(tiny_hf, **{**folders, **changed})


def test_a_tokenizer_of_another_model_is_refused(tiny_hf: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    small = text_model(tmp_path / "small", vocab_size=100)

    with pytest.raises(ModelError, match=r"tokenizer has \d+ tokens, and the text tower of tiny-hf-text knows 100"):
        load(tiny_hf, **{**folders, "text_model": small})


@pytest.mark.parametrize("option", ["tokenizer", "text_model"])
def test_a_folder_that_is_not_needed_is_refused(tiny_vit: Path, folders: dict[str, Path], option: str) -> None:
    with pytest.raises(ModelError, match=f"leave out --{option.replace('_', '-')}"):
        load(tiny_vit, **{option: folders[option]})


def test_code_of_a_model_is_not_run(tiny_hf: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = text_model(tmp_path / "with code")
    document = json.loads((folder / "config.json").read_text())
    document |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(document))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")

    with pytest.raises(ModelError, match="the text tower of tiny-hf-text cannot be built"):
        load(tiny_hf, **{**folders, "text_model": folder})
    assert not (tmp_path / "ran").exists()


def test_a_text_feature_is_that_of_the_text_model(tiny_hf: Path, folders: dict[str, Path]) -> None:
    model = load(tiny_hf, **folders)
    ids = model.tokenizer(["a red bird."])
    kept = ids[ids != 1][None]
    inner: Any = model.module.text

    hidden = inner.transformer(input_ids=kept).last_hidden_state
    wanted = inner.proj(hidden.mean(dim=1))

    torch.testing.assert_close(model.module.encode_text(ids), wanted, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_bundle_of_a_text_model_exports_and_verifies(
    make_config: MakeConfig, tiny_hf: Path, folders: dict[str, Path]
) -> None:
    config = make_config(model=str(tiny_hf), **folders)
    options = [part for name, path in folders.items() for part in (f"--{name.replace('_', '-')}", str(path))]

    manifest, parity = export(config)
    arguments = ["verify", str(config.output), "--model", str(tiny_hf)]
    verified, refused = (CliRunner().invoke(calipso, [*arguments, *more]) for more in (options, []))

    assert parity.failures == ()
    assert "text_tower" not in manifest.model["weights"]
    assert verified.exit_code == 0, verified.output
    assert refused.exit_code == 1
    assert "--text-model DIR" in refused.output


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["open", "embed"])
@pytest.mark.parametrize("kind", HUB)
def test_a_text_model_in_a_bundle_of_any_labels_answers_as_open_clip(tmp_path: Path, kind: str, mode: str) -> None:
    tokenizer, folder, changes = HUB[kind]
    model = write_model(
        tmp_path / f"tiny-{kind}-{mode}.json", {**VIT, **changes, "text_cfg": {**HF_TEXT, **changes["text_cfg"]}}
    )
    folders = {"tokenizer": tokenizer(tmp_path / "tokenizer"), "text_model": folder(tmp_path / "text-model")}
    config = ExportConfig(model=str(model), random_init=0, head_mode=mode, output=tmp_path / "any.calipso", **folders)
    options = [part for name, path in folders.items() for part in (f"--{name.replace('_', '-')}", str(path))]
    picture = tmp_path / "picture.png"
    noise(1).save(picture)

    _, parity = export(config)
    verified = CliRunner().invoke(calipso, ["verify", str(config.output), "--model", str(model), *options])

    assert parity.failures == ()
    assert verified.exit_code == 0, verified.output
    loaded = load_model(config)
    module: Any = loaded.module
    # One text and three; short, and more tokens than the context.
    for texts in (["a bird"], ["bird " * 5_000], ["a photo of a red bird.", "", "x" * 10_000]):
        ids = loaded.tokenizer(texts)
        with torch.no_grad():
            wanted = module.encode_text(ids, normalize=True).numpy()
            logits = module.get_logits(loaded.front_end.eager_input(picture)[None], ids)[0].numpy()
        with load_embedder(config.output, backend="ort") as embedder:
            assert np.abs(embedder.text(texts) - wanted).max() < 1e-5 * np.abs(wanted).max()
        with load_bundle(config.output, backend="ort") as classifier:
            assert np.abs(classifier.logits(picture, prompts=texts) - logits).max() < 1e-4 * np.abs(logits).max()


@pytest.mark.slow
def test_with_text_features_the_text_tower_is_left_out_of_model_checkpoint_and_bundle(
    make_config: MakeConfig, tiny_hf: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    checkpoint, features = tmp_path / "whole.safetensors", tmp_path / "features.npz"
    whole = load(tiny_hf, **folders)
    save_file(whole.module.state_dict(), checkpoint)
    np.savez(features, weights=unit_vectors(np.random.default_rng(7), 3, 32), classes=np.array(CLASSES))
    config = make_config(
        model=str(tiny_hf), random_init=None, checkpoint=checkpoint, text_weights=features, templates="imagenet-7"
    )

    manifest, parity = export(config)
    arguments = ["verify", str(config.output), "--model", str(tiny_hf), "--checkpoint", str(checkpoint)]
    verified = CliRunner().invoke(calipso, [*arguments, "--text-weights", str(features)])

    assert parity.failures == ()
    assert manifest.model["weights"]["text_tower"] == "not loaded"
    assert verified.exit_code == 0, verified.output
    loaded = load_model(config)
    for name, tensor in whole.visual.state_dict().items():
        torch.testing.assert_close(loaded.visual.state_dict()[name], tensor, atol=0, rtol=0)


def test_a_checkpoint_that_lacks_part_of_the_vision_tower_is_refused(
    tiny_hf: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    state = load(tiny_hf, **folders).module.state_dict()
    del state["visual.proj"]
    save_file(state, tmp_path / "part.safetensors")

    with pytest.raises(ModelError, match=r"1 tensors missing \(visual\.proj\)"):
        load(tiny_hf, checkpoint=tmp_path / "part.safetensors", text_weights=Path("features.npz"))


def test_position_ids_of_older_checkpoints_are_no_weights(
    tiny_hf: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    model = load(tiny_hf, **folders)
    old = {**model.module.state_dict(), "text.transformer.embeddings.position_ids": torch.arange(100)[None]}
    save_file(old, tmp_path / "old.safetensors")

    again = load(tiny_hf, checkpoint=tmp_path / "old.safetensors", **folders)

    assert again.weights["sha256"] == model.weights["sha256"]
