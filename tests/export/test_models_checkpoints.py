"""Checkpoints: whatever is not exactly this model's weights is refused, and no code in a file runs."""

import json
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from export_samples import CLASSES, RESNET, TEXT, VIT, answer_or_refusal, write_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from calipso_export import ExportConfig
from calipso_export.models import LoadedModel, load_model
from calipso_runtime.errors import CalipsoWarning, ModelError

EXAMPLES = settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
KINDS = ("tiny.safetensors", "tiny.pt", "legacy.pt")


def load(model: Path, checkpoint: Path) -> LoadedModel:
    return load_model(ExportConfig(model=str(model), classes=CLASSES, output=Path("unused"), checkpoint=checkpoint))


@pytest.fixture(scope="module")
def state(vit: LoadedModel) -> dict[str, torch.Tensor]:
    return vit.module.state_dict()


@pytest.fixture(scope="module")
def files(state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights in every kind of file."""
    folder = tmp_path_factory.mktemp("checkpoints")
    save_file(state, folder / "tiny.safetensors")
    torch.save(state, folder / "tiny.pt")
    torch.save(state, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}, folder / "run.pt")
    save_file({key: value.half() for key, value in state.items()}, folder / "half.safetensors")
    return folder


@pytest.mark.parametrize("name", [*KINDS, "run.pt"])
def test_the_same_weights_are_the_same_whatever_file_they_come_from(
    tiny_vit: Path, vit: LoadedModel, files: Path, name: str
) -> None:
    model = load(tiny_vit, files / name)

    assert model.weights == {"source": "checkpoint", "file": name, "sha256": vit.weights["sha256"]}


def test_half_precision_weights_are_loaded_as_float32(
    tiny_vit: Path, state: dict[str, torch.Tensor], files: Path
) -> None:
    loaded = load(tiny_vit, files / "half.safetensors").module.state_dict()

    assert {value.dtype for value in loaded.values()} == {torch.float32}
    assert torch.equal(loaded["visual.proj"], state["visual.proj"].half().float())


@pytest.mark.parametrize("name", ["lost.safetensors", "lost.pt"])
def test_a_missing_checkpoint_is_said(tiny_vit: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match=r"the checkpoint .* does not exist"):
        load(tiny_vit, tmp_path / name)


@EXAMPLES
@given(share=st.floats(0, 1, exclude_max=True))
@pytest.mark.parametrize("name", KINDS)
def test_a_checkpoint_cut_anywhere_is_refused(
    tiny_vit: Path, files: Path, tmp_path: Path, name: str, share: float
) -> None:
    content = (files / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(share * len(content))])

    with pytest.raises(ModelError, match=rf"the checkpoint .*{name} cannot be read: it is truncated"):
        load(tiny_vit, tmp_path / name)


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 100, -1])
@pytest.mark.parametrize("name", KINDS)
def test_a_checkpoint_cut_at_its_edges_is_refused(
    tiny_vit: Path, files: Path, tmp_path: Path, name: str, kept: int
) -> None:
    (tmp_path / name).write_bytes((files / name).read_bytes()[:kept])

    with pytest.raises(ModelError, match="cannot be read: it is truncated"):
        load(tiny_vit, tmp_path / name)


@EXAMPLES
@given(at=st.floats(0, 1, exclude_max=True), byte=st.integers(1, 255))
@pytest.mark.parametrize("name", KINDS)
def test_a_checkpoint_with_any_byte_changed_is_loaded_or_refused(
    *, tiny_vit: Path, files: Path, tmp_path: Path, name: str, at: float, byte: int
) -> None:
    content = bytearray((files / name).read_bytes())
    # The values of the weights are most of the file, and any are as good as others: aim at what is around them.
    place = int(at * 20_000)
    content[place - 10_000 if name != "tiny.safetensors" else place % 5_000] ^= byte
    (tmp_path / name).write_bytes(content)

    model, refusal = answer_or_refusal(load, tiny_vit, tmp_path / name)

    assert model is not None or name in refusal


@pytest.mark.parametrize("name", ["text.pt", "text.safetensors"])
def test_a_file_of_another_kind_is_refused(tiny_vit: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("these are no weights\n" * 100)

    with pytest.raises(ModelError, match="neither safetensors nor a torch file"):
        load(tiny_vit, tmp_path / name)


@pytest.mark.parametrize(
    "content", [{}, [], [1, 2], torch.zeros(3), {"a": 1}, {1: torch.zeros(3)}, {"state_dict": {}}, "text", None]
)
def test_a_torch_file_without_a_state_dict_is_refused(tiny_vit: Path, tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "odd.pt")

    with pytest.raises(ModelError, match=r"odd\.pt"):
        load(tiny_vit, tmp_path / "odd.pt")


def test_weights_of_another_architecture_are_refused_with_what_differs(tmp_path: Path, files: Path) -> None:
    resnet = write_model(tmp_path / "other-resnet.json", RESNET)

    with pytest.raises(ModelError, match=r"is of another architecture than other-resnet: \d+ tensors missing \("):
        load(resnet, files / "tiny.safetensors")


def test_weights_of_another_size_are_refused_with_the_shapes(tmp_path: Path, files: Path) -> None:
    wide = write_model(tmp_path / "wide-vit.json", vision={"width": 96, "head_width": 32})

    with pytest.raises(ModelError, match=r"of another shape \(.*\[64\] instead of \[96\]"):
        load(wide, files / "tiny.safetensors")


@pytest.mark.parametrize("name", ["tiny.safetensors", "tiny.pt"])
def test_a_positional_embedding_of_another_picture_size_is_not_resized(tmp_path: Path, files: Path, name: str) -> None:
    large = write_model(tmp_path / f"{tmp_path.name}.json", vision={"image_size": 64})

    with pytest.raises(ModelError, match=r"visual\.positional_embedding \[17, 64\] instead of \[65, 64\]"):
        load(large, files / name)


def test_a_text_context_of_another_length_is_not_cut(tmp_path: Path, files: Path) -> None:
    long = write_model(tmp_path / "long-vit.json", {**VIT, "text_cfg": {**TEXT, "context_length": 20}})

    with pytest.raises(ModelError, match=r"positional_embedding \[16, 32\] instead of \[20, 32\]"):
        load(long, files / "tiny.safetensors")


def test_a_tensor_too_few_or_too_many_is_named(tiny_vit: Path, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    changed = {("extra" if key == "visual.proj" else key): value for key, value in state.items()}
    save_file(changed, tmp_path / "changed.safetensors")

    with pytest.raises(ModelError, match=r"1 tensors missing \(visual\.proj\); 1 tensors unknown to it \(extra\)"):
        load(tiny_vit, tmp_path / "changed.safetensors")


def test_a_logit_bias_that_the_model_does_not_know_is_refused(
    tiny_vit: Path, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    save_file({**state, "logit_bias": torch.tensor(-10.0)}, tmp_path / "biased.safetensors")

    with pytest.raises(ModelError, match=r"1 tensors unknown to it \(logit_bias\)"):
        load(tiny_vit, tmp_path / "biased.safetensors")


def test_a_torchscript_archive_is_refused_unread(tiny_vit: Path, tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match=r"torch\.jit"):
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "scripted.pt")

    with pytest.raises(ModelError, match=r"scripted\.pt is a TorchScript archive, which runs code"):
        load(tiny_vit, tmp_path / "scripted.pt")


class Bomb:
    """Writes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.path, "it ran"))


@pytest.mark.parametrize("modern", [True, False])
def test_code_in_a_torch_file_does_not_run(tiny_vit: Path, tmp_path: Path, modern: bool) -> None:
    content = OrderedDict(bomb=Bomb(tmp_path / "ran"))
    torch.save(content, tmp_path / "evil.pt", _use_new_zipfile_serialization=modern)

    with pytest.raises(ModelError, match="weights_only=True"):
        load(tiny_vit, tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_code_in_a_plain_pickle_does_not_run(tiny_vit: Path, tmp_path: Path) -> None:
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))

    with pytest.raises(ModelError, match="weights_only=True"):
        load(tiny_vit, tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def beside(folder: Path, files: Path, content: object) -> Path:
    """The weights as a hub's snapshot holds them: with their configuration."""
    (folder / "open_clip_model.safetensors").write_bytes((files / "tiny.safetensors").read_bytes())
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "open_clip_config.json").write_text(text)
    return folder / "open_clip_model.safetensors"


def test_an_activation_that_differs_from_the_one_beside_the_weights_is_refused(
    tiny_vit: Path, tmp_path: Path, files: Path
) -> None:
    checkpoint = beside(tmp_path, files, {"model_cfg": {**VIT, "quick_gelu": True}})

    with pytest.raises(ModelError, match=r"tiny-vit uses GELU, but open_clip_config\.json beside .* with QuickGELU"):
        load(tiny_vit, checkpoint)


def test_the_same_activation_beside_the_weights_is_fine(tiny_vit: Path, tmp_path: Path, files: Path) -> None:
    assert load(tiny_vit, beside(tmp_path, files, {"model_cfg": VIT})).quick_gelu is False


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model_cfg": 3}'])
def test_a_broken_configuration_beside_the_weights_is_said(
    tiny_vit: Path, tmp_path: Path, files: Path, content: str
) -> None:
    with pytest.raises(ModelError, match=r"open_clip_config\.json, which lies beside the checkpoint, is no"):
        load(tiny_vit, beside(tmp_path, files, content))


def hub(folder: Path, files: Path, **preprocess: object) -> Path:
    document = {"model_cfg": VIT, "preprocess_cfg": preprocess}
    return beside(folder, files, document)


def test_the_preprocessing_beside_the_weights_is_used(tiny_vit: Path, tmp_path: Path, files: Path) -> None:
    told = {"mean": [0.5] * 3, "std": [0.4] * 3, "interpolation": "bilinear", "resize_mode": "squash"}

    model = load(tiny_vit, hub(tmp_path, files, **told))

    found = model.preprocess
    assert (found.mean, found.std, found.interpolation, found.resize_mode) == (
        (0.5,) * 3,
        (0.4,) * 3,
        "bilinear",
        "squash",
    )
    assert "open_clip_config.json beside the weights" in model.preprocess_source


def test_what_is_given_wins_over_what_lies_beside_the_weights(tiny_vit: Path, tmp_path: Path, files: Path) -> None:
    checkpoint = hub(tmp_path, files, mean=[0.5] * 3)
    config = ExportConfig(
        model=str(tiny_vit),
        classes=CLASSES,
        output=Path("unused"),
        checkpoint=checkpoint,
        preprocess={"mean": (0.1, 0.2, 0.3)},
    )

    model = load_model(config)

    assert model.preprocess.mean == (0.1, 0.2, 0.3)
    assert "given: mean" in model.preprocess_source


def test_another_network_beside_the_weights_is_refused_with_what_differs(
    tiny_vit: Path, tmp_path: Path, files: Path
) -> None:
    other = {**VIT, "vision_cfg": {**VIT["vision_cfg"], "layers": 5}}

    with pytest.raises(ModelError, match=r"vision_cfg\.layers: 2 in tiny-vit, 5 there"):
        load(tiny_vit, beside(tmp_path, files, {"model_cfg": other}))


@pytest.mark.parametrize(
    ("prefix", "wrapper"),
    [
        ("module.", "state_dict"),
        ("_orig_mod.", "model"),
        ("model.", "state_dict"),
        ("module._orig_mod.model.clip.", "model_state_dict"),
        ("", "weights"),
    ],
)
def test_whatever_a_training_script_puts_around_the_weights_is_taken_off(
    tiny_vit: Path, vit: LoadedModel, tmp_path: Path, prefix: str, wrapper: str
) -> None:
    path, state = tmp_path / "run.pt", vit.module.state_dict()
    torch.save({"epoch": 3, wrapper: {f"{prefix}{name}": value for name, value in state.items()}}, path)

    assert load(tiny_vit, path).weights["sha256"] == vit.weights["sha256"]


def test_what_lies_outside_of_the_model_is_left_out_with_a_warning(
    tiny_vit: Path, state: dict[str, torch.Tensor], tmp_path: Path, vit: LoadedModel
) -> None:
    path = tmp_path / "lightning.ckpt"
    own = {f"model.{name}": value for name, value in state.items()}
    torch.save({"state_dict": {**own, "loss.margin": torch.zeros(2), "head.weight": torch.zeros(3)}}, path)

    with pytest.warns(CalipsoWarning, match="2 tensors of"):
        model = load(tiny_vit, path)

    assert model.weights["sha256"] == vit.weights["sha256"]


def test_a_file_that_holds_the_model_twice_is_refused(
    tiny_vit: Path, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "distilled.pt"
    both = {f"{who}.{name}": value for who in ("student", "teacher") for name, value in state.items()}
    torch.save(both, path)

    with pytest.raises(ModelError, match=r"holds the model 2 times, under 'student\.', 'teacher\.'"):
        load(tiny_vit, path)


def test_a_file_of_several_sets_of_weights_is_refused(
    tiny_vit: Path, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "run.pt"
    torch.save({"model": state, "model_ema": state}, path)

    with pytest.raises(ModelError, match="several sets of weights: model, model_ema"):
        load(tiny_vit, path)


def test_shards_are_read_by_their_index(
    tiny_vit: Path, state: dict[str, torch.Tensor], tmp_path: Path, vit: LoadedModel
) -> None:
    names = sorted(state)
    halves = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for shard, own in halves.items():
        save_file({name: state[name] for name in own}, tmp_path / shard)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: shard for shard, own in halves.items() for name in own}}))

    for checkpoint in (index, tmp_path):
        assert load(tiny_vit, checkpoint).weights["sha256"] == vit.weights["sha256"]

    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(ModelError, match=r"names the shard model-2\.safetensors, which is not beside it"):
        load(tiny_vit, index)


@pytest.mark.parametrize("content", ["x", "[]", "{}", '{"weight_map": {"logit_scale": 5}}'])
def test_an_index_that_is_none_is_refused(tiny_vit: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)

    with pytest.raises(ModelError, match="is not an index of shards"):
        load(tiny_vit, tmp_path)


def test_a_folder_without_weights_is_refused(tiny_vit: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no weights"):
        load(tiny_vit, tmp_path)


@pytest.mark.parametrize("as_folder", [True, False])
def test_an_adapter_is_refused_with_how_to_merge_it(tiny_vit: Path, tmp_path: Path, as_folder: bool) -> None:
    name = "base_model.model.visual.transformer.resblocks.0.mlp.c_fc.lora_A.weight"
    save_file({name: torch.zeros(4, 64)}, tmp_path / "adapter_model.safetensors")
    if as_folder:
        (tmp_path / "adapter_config.json").write_text("{}")

    with pytest.raises(ModelError, match="merge_and_unload"):
        load(tiny_vit, tmp_path if as_folder else tmp_path / "adapter_model.safetensors")


@pytest.mark.parametrize(("told", "hint"), [(100.0, "4.6052"), (28.23, "3.34"), (-1.0, ""), (9.0, "2.19")])
def test_a_logit_scale_that_no_clip_has_is_refused(
    tiny_vit: Path, state: dict[str, torch.Tensor], tmp_path: Path, told: float, hint: str
) -> None:
    path = tmp_path / "scaled.safetensors"
    save_file({**state, "logit_scale": torch.tensor(told)}, path)

    with pytest.raises(ModelError, match=f"logit_scale of .*{hint}"):
        load(tiny_vit, path)
