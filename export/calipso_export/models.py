"""Loads an open_clip model, and refuses whatever would silently be a different model."""

import contextlib
import dataclasses
import functools
import hashlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import nn

from calipso_export.beside import Beside, check_architecture, read_beside
from calipso_export.checkpoints import activation_message, check_activation, load_checkpoint, part_of_vision, some
from calipso_export.clip import open_clip
from calipso_export.config import ExportConfig
from calipso_export.front_ends import FrontEnd, front_end
from calipso_export.hf_text import TextPlan, load_tokenizer, plan_text
from calipso_export.model_names import registered_name
from calipso_export.preprocessing import settings_of, warn_of_doubt
from calipso_export.towers import Tower, tower_class
from calipso_export.towers.base import own_feature
from calipso_runtime.errors import BundleSchemaError, CalipsoWarning, ModelError
from calipso_runtime.manifest import Preprocess

# Of random layers: large enough that every branch counts, small enough that 70 of them do not drown the first.
_LAYER_SCALES = (0.1, 0.3)
# What open_clip raises, without checks of its own, where a configuration has a wrong name or value.
_CONFIGURATION_ERRORS = (TypeError, ValueError, AttributeError, AssertionError, ArithmeticError, LookupError)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """An open_clip model, ready to be read.

    Attributes:
        name: the model's name in open_clip.
        module: in eval mode, float32, without gradients.
        tower: the class that restates its vision tower.
        load_tokenizer: gives open_clip's tokenizer, loaded once.
        preprocess: how its pictures are prepared.
        preprocess_source: who says so, for the manifest.
        front_end: what stands before the tower: the graph's input, and how it becomes images.
        transform: open_clip's own evaluation transform: PIL image -> float32 [3,H,W].
        scale: exp(logit_scale).
        bias: logit bias, 0 where the model has none.
        weights: where the weights came from, for the manifest; with the sha256 of the loaded tensors, and
            `text_tower` where they are not those of a text tower.
        architecture: open_clip's configuration of it.
    """

    name: str
    module: nn.Module
    tower: type[Tower]
    load_tokenizer: Callable[[], Any]
    preprocess: Preprocess
    preprocess_source: str
    front_end: FrontEnd
    transform: Any
    scale: float
    bias: float
    weights: dict[str, Any]
    architecture: dict[str, Any]

    @property
    def quick_gelu(self) -> bool:
        """Whether the model uses QuickGELU."""
        return bool(self.architecture.get("quick_gelu", False))

    @property
    def tokenizer(self) -> Any:
        """open_clip's own: texts -> int64 [N,context_length].

        Raises:
            ModelError: it cannot be loaded.
        """
        return self.load_tokenizer()

    @property
    def visual(self) -> nn.Module:
        """The vision tower, open_clip's own module."""
        return cast("nn.Module", self.module.visual)

    @property
    def why_no_tokens(self) -> str | None:
        """Why the tower has no spatial tokens in the joint space, and CALIP is not defined; None where it has."""
        return self.tower.why_no_tokens(self.visual)

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        """open_clip's own global features [B,D] of images [B,3,H,W], not normalised."""
        return own_feature(self.visual, images)

    def tokens(self, images: torch.Tensor) -> torch.Tensor:
        """The spatial tokens [B,P,D] through open_clip's own modules, not normalised.

        Raises:
            ModelError: there are none, and why.
        """
        _, tokens = self.tower.reference(self.visual, images)
        if tokens is None:
            message = f"{self.name} has no spatial tokens: {self.why_no_tokens}"
            raise ModelError(message)
        return tokens


def load_model(config: ExportConfig, *, encodes_text: bool = True) -> LoadedModel:
    """Build the model that a configuration names, and load its weights.

    Args:
        config: the configuration.
        encodes_text: whether prompts will be encoded, unless text features come from a file: then the tokenizer has to
            be at hand.

    Raises:
        ModelError: unknown model or tag, no network, a checkpoint that is missing, truncated, of another
            architecture or activation, or a vision tower that cannot be exported.
    """
    name = registered_name(config.model)
    architecture = open_clip.get_model_config(name)
    quick_gelu = bool(architecture.get("quick_gelu", False))
    if config.pretrained is not None:
        _check_tag(name, config.pretrained, quick_gelu=quick_gelu)
    beside = _beside(config, name, architecture)
    _, preprocess_source = settings_of(name, config, beside)
    with _quiet():
        text = plan_text(config, name, architecture)
    tokenizer = functools.cache(functools.partial(_tokenizer, config, name, architecture, text.rows))
    if encodes_text and config.text_weights is None:
        # Now rather than after a long download.
        tokenizer()
    outside: list[str] = []
    with _quiet():
        if config.pretrained is not None:
            module = _pretrained(name, config, text)
            weights: dict[str, Any] = {"source": "pretrained", "tag": config.pretrained}
        elif config.checkpoint is not None:
            module = _create(name, config, text, beside=beside)
            outside = load_checkpoint(module, config.checkpoint, name, vision_only=text.left_out)
            weights = {"source": "checkpoint", "file": config.checkpoint.name}
        else:
            module = _random(name, config, text)
            weights = {"source": "random", "seed": config.random_init}
        tower = tower_class(module.visual)
        _check_tokens(config, name, tower.why_no_tokens(module.visual))
    if outside:
        message = f"{len(outside)} tensors of the checkpoint are not the model's, and are left out: {some(outside)}"
        warnings.warn(message, CalipsoWarning, stacklevel=2)
    if text.left_out:
        weights["text_tower"] = "not loaded"
    module = module.eval().requires_grad_(requires_grad=False)
    warn_of_doubt(module.visual, config, preprocess_source)
    settings = module.visual.preprocess_cfg
    preprocess = _preprocess(settings)
    transform = open_clip.transform.image_transform_v2(open_clip.transform.PreprocessCfg(**settings), is_train=False)
    return LoadedModel(
        name=name,
        module=module,
        tower=tower,
        load_tokenizer=tokenizer,
        preprocess=preprocess,
        preprocess_source=preprocess_source,
        front_end=front_end(config, preprocess, transform),
        transform=transform,
        scale=float(module.logit_scale.exp()),
        bias=0.0 if module.logit_bias is None else float(module.logit_bias),
        weights={**weights, "sha256": weights_sha256(module, vision_only=text.left_out)},
        architecture=architecture,
    )


def _beside(config: ExportConfig, name: str, architecture: dict[str, Any]) -> Beside:
    """What lies beside a checkpoint; it must agree with the model."""
    if config.checkpoint is None:
        return Beside()
    beside, quick_gelu = read_beside(config.checkpoint), bool(architecture.get("quick_gelu", False))
    if beside.quick_gelu is None:
        check_activation(name, config.activation, quick_gelu=quick_gelu)
    elif beside.quick_gelu != quick_gelu:
        raise ModelError(activation_message(name, f"{beside.file} beside the weights", model=quick_gelu))
    check_architecture(beside, architecture, name)
    return beside


def _check_tokens(config: ExportConfig, name: str, reason: str | None) -> None:
    """Refuse what needs spatial tokens where the tower has none, if it was asked for by name."""
    asked = {
        "--calip": config.calip is True,
        "--calip-fs": config.calip_fs,
        "--b2 and --b3": config.b2 is not None,
        "--outputs tokens": "tokens" in config.outputs,
    }
    given = [option for option, is_given in asked.items() if is_given]
    if reason is not None and given:
        message = (
            f"{' and '.join(given)} cannot be had of {name}: its spatial tokens do not reach the joint space, so that "
            f"CALIP is not defined: {reason}. Leave it out, and the rest is exported"
        )
        raise ModelError(message)


def weights_sha256(module: nn.Module, *, vision_only: bool = False) -> str:
    """Hash of the tensors by name, the text tower's only where it was loaded.

    The same for the same weights, whatever file they came from.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if vision_only and not part_of_vision(name):
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def _create(
    name: str, config: ExportConfig, text: TextPlan, *, pretrained: str | None = None, beside: Beside | None = None
) -> Any:
    try:
        return open_clip.create_model(
            name,
            pretrained=pretrained,
            pretrained_image=False,
            pretrained_text=False,
            force_preprocess_cfg=settings_of(name, config, beside)[0],
            weights_only=True,
            **({} if text.settings is None else {"text_cfg": text.settings}),
        )
    except (RuntimeError, OSError) as error:
        # A failed download, though huggingface_hub's is a ValueError too.
        if pretrained is not None:
            raise
        message = f"open_clip cannot build {config.model}: {error}"
        raise ModelError(message) from error
    except _CONFIGURATION_ERRORS as error:
        message = f"open_clip cannot build {config.model} from its configuration: {error!r}"
        raise ModelError(message) from error


def _check_tag(name: str, tag: str, *, quick_gelu: bool) -> None:
    settings = open_clip.get_pretrained_cfg(name, tag)
    if not settings:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        message = f"open_clip knows no weights {tag!r} for {name}. Known tags: {known}"
        raise ModelError(message)
    # A tag that says nothing of it was trained with its model's own configuration (roberta-ViT-B-32).
    if bool(settings.get("quick_gelu", quick_gelu)) != quick_gelu:
        raise ModelError(activation_message(name, f"the tag {tag!r}", model=quick_gelu))


def _pretrained(name: str, config: ExportConfig, text: TextPlan) -> Any:
    tag = config.pretrained
    try:
        return _create(name, config, text, pretrained=tag)
    except (RuntimeError, OSError) as error:
        message = (
            f"the weights {tag!r} of {name} could not be downloaded: {error}. Without a network, download them "
            "elsewhere and give the file with --checkpoint FILE"
        )
        raise ModelError(message) from error


def _random(name: str, config: ExportConfig, text: TextPlan) -> Any:
    torch.manual_seed(config.random_init or 0)
    module = _create(name, config, text)
    enliven(module)
    return module


def enliven(module: nn.Module) -> None:
    """Let every residual branch of a freshly initialised network take part.

    open_clip starts the last batch norm of every branch at 0, and timm the scale of every layer near 0, which
    switches the branch off: whatever is measured on such a network says nothing about it.
    """
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.1)
            nn.init.normal_(cast("torch.Tensor", part.running_mean), std=0.1)
            nn.init.uniform_(cast("torch.Tensor", part.running_var), 0.5, 1.5)
    for name, parameter in module.named_parameters():
        # As they are called in open_clip and in timm.
        if name.rpartition(".")[2] in ("gamma", "gamma_1", "gamma_2"):
            nn.init.uniform_(parameter, *_LAYER_SCALES)


def _tokenizer(config: ExportConfig, name: str, architecture: dict[str, Any], rows: int | None) -> Any:
    with _quiet():
        return load_tokenizer(config, name, architecture, rows=rows)


def _preprocess(settings: dict[str, Any]) -> Preprocess:
    size = settings["size"]
    height, width = (size, size) if isinstance(size, int) else size
    try:
        return _preprocess_of(settings, int(height), int(width))
    except (TypeError, ValueError, BundleSchemaError) as error:
        message = f"the preprocessing {settings} cannot be used: {error}"
        raise ModelError(message) from error


def _preprocess_of(settings: dict[str, Any], height: int, width: int) -> Preprocess:
    return Preprocess(
        size=(height, width),
        mean=_three(settings["mean"]),
        std=_three(settings["std"]),
        interpolation=settings["interpolation"],
        resize_mode=settings["resize_mode"],
        fill_color=int(settings["fill_color"]),
    )


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """open_clip and torch log and warn of what we say as errors, or in the manifest."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
