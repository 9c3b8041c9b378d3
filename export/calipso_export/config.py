"""Everything that an export can be told, validated once."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import PIL

from calipso_export.choices import BAKED, EMBED, EQUAL, OPEN, SEARCH, SNAPSHOT, WEIGHTS
from calipso_export.classes import check_classes
from calipso_export.config_checks import check
from calipso_export.heads import DEFAULT
from calipso_export.templates import DEFAULT_TEMPLATES
from calipso_runtime.errors import UsageError
from calipso_runtime.parity import Gates
from calipso_runtime.pixel_input import MATMUL, OP, PixelInput, passes_of

PATHS = (
    "checkpoint",
    "tokenizer",
    "text_model",
    "text_weights",
    "shots",
    "cache_file",
    "verify_data",
    "calib_data",
    "feature_cache",
    "output",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """One export.

    Attributes:
        model: an open_clip model name, or the path of an open_clip model configuration (`.json`), or of a snapshot: a
            folder with `open_clip_config.json`, or that file.
        classes: class names, in the order of the logits; of head modes "open" and "embed" those that are meant where a
            call names none, and there may be none.
        output: the bundle to write, a directory.
        pretrained: an open_clip pretrained tag; downloads the weights. One of these three is needed:
        checkpoint: a `.safetensors` file, a `torch.save` file that loads with `weights_only=True`, an index of shards,
            or a folder with one of them. Where none of the three is given and `model` is a snapshot: what lies there.
        random_init: seed of random weights, to measure without a checkpoint.
        tokenizer: a folder with the files of a Hugging Face tokenizer, for models that take theirs from the hub.
        text_model: a folder with the `config.json` of a Hugging Face text model, for models whose text tower is one.
        activation: "gelu" or "quick-gelu", with which a checkpoint was trained: asked for where its model is published
            with both, and nothing beside it says which.
        input: what the graph takes: "image", or "points": point clouds, projected into depth maps inside the graph.
        pixels: let the graph take pictures as decoders give them, uint8 [B,H,W,C], and prepare them itself.
        pixels_size: "HxW", where all of them are of one size, as a camera's are; any size where None.
        channel_order: of these pixels: "rgb", "bgr", "rgba" or "bgra".
        resize_form: how the graph resizes them: "op", by the Resize operator, which ONNX Runtime computes as Pillow
            does; "matmul", by products with constant matrices, for all engines and one size; "matmul" where None and
            the size is given, else "op".
        points: how many points of a cloud the graph takes, where it takes points.
        views: how many depth maps are made of a cloud, 6 or 10.
        view_weights: "equal", "search" (on the shots), or numbers of at least 0 with commas, one per view.
        preprocess: overrides of open_clip's `preprocess_cfg`, for checkpoints that need their own.
        templates: a name, or a file of templates or of prompts per class.
        text_weights: a `.npz` or `.safetensors` with text features of the classes, instead of templates.
        shots: a folder `shots/<class>/*` of example photos.
        cache_file: a `.npz` with ready `keys` float [M,D] and `labels` int [M], instead of `shots`.
        calip: whether CALIP may be used: True asks for it by name, None takes it where the model has it.
        calip_fs: whether linear layers in CALIP's attention are learned on the shots, and used where they pay.
        cache: whether a few-shot head may be used: Tip-Adapter's cache, or another one.
        head: which few-shot head, a name out of `heads.FEW_SHOT`, or "auto": the best of them by
            cross-validation on the shots, or none where none is better than zero-shot.
        alpha: weight of Tip-Adapter's cache; searched on the shots where None.
        beta: sharpness of the cache; searched on the shots where None.
        b2: CALIP's weight of the text seen through the image; searched on the shots where None.
        b3: CALIP's weight of the image seen through the text; searched on the shots where None.
        unknown_at: share of pictures of no known class that may be answered all the same: chooses the threshold below
            which a picture is unknown, on the shots. No threshold where None.
        epochs: augmented views of each photo that are averaged into its key; 0 for the photo as it is, which is what
            a class that is taught later is made of.
        head_mode: "baked": text weights and cache are constants of the graph; "inputs": they are inputs of it, so
            that classes can be taught later; "open": the text tower is in the graph too, and takes any labels; or
            "embed": the towers are two graphs. CALIP goes with the first alone.
        skip_unreadable: leave out photos that cannot be decoded, and report them.
        outputs: what the graph gives; `logits` is one of them.
        opset: ONNX opset of the graph; from 23 on an attention in 16 bits is one operator.
        precision: number format of the graph, a name out of `precision.PRECISIONS`, or "auto": the first of those
            for the target, fastest first, that passes its gates and loses at most `max_drop`.
        target: where it will run, for "auto": "cpu" or "gpu"; what this machine has where None.
        max_drop: for "auto", how many percentage points of top-1 accuracy may be lost.
        io_dtype: type of the graph's input and outputs, "fp32" or "fp16".
        calib_data: pictures to measure the ranges of activations on; the shots where None.
        calib_pictures: how many of them at most.
        full_range: use all eight bits of int8 weights. By default they are scaled so that CPUs without VNNI cannot
            overflow; this is more exact on GPUs, and slower on those CPUs.
        pin: names of layers or nodes that stay in fp32, whatever the gates say.
        repair_minutes: how long layers are searched for that have to stay in fp32 when a gate fails; 0 for not at all.
        verify_data: pictures to verify on; the shots where None. In folders named like the classes,
            accuracy is reported too.
        reference: put some of the pictures that were verified on into the bundle, with eager PyTorch's answers, so that
            an engine can be checked where there is no PyTorch.
        gates: what the written file must reach: those of its precision, with the ones named here over them; or all.
        seed: of the augmentation and of every sample.
        feature_cache: folder that keeps encoded photos between runs; the user's cache where None.
        overwrite: replace an existing bundle.
        force: write the bundle even if a gate failed, marked `parity: failed`.
    """

    model: str
    output: Path
    classes: tuple[str, ...] = ()
    pretrained: str | None = None
    checkpoint: Path | None = None
    random_init: int | None = None
    tokenizer: Path | None = None
    text_model: Path | None = None
    activation: str | None = None
    input: str = "image"
    pixels: bool = False
    pixels_size: str | None = None
    channel_order: str = "rgb"
    resize_form: str | None = None
    points: int = 1024
    views: int = 6
    view_weights: str = EQUAL
    preprocess: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    templates: str = DEFAULT_TEMPLATES
    text_weights: Path | None = None
    shots: Path | None = None
    cache_file: Path | None = None
    calip: bool | None = None
    calip_fs: bool = False
    cache: bool = True
    head: str = DEFAULT
    alpha: float | None = None
    beta: float | None = None
    b2: float | None = None
    b3: float | None = None
    unknown_at: float | None = None
    epochs: int = 10
    head_mode: str = BAKED
    skip_unreadable: bool = False
    outputs: tuple[str, ...] = ("logits", "embedding")
    opset: int = 18
    precision: str = "fp32"
    target: str | None = None
    max_drop: float = 0.1
    io_dtype: str = "fp32"
    calib_data: Path | None = None
    calib_pictures: int = 256
    full_range: bool = False
    pin: tuple[str, ...] = ()
    repair_minutes: float = 15.0
    verify_data: Path | None = None
    reference: bool = True
    gates: Gates | Mapping[str, float] = dataclasses.field(default_factory=dict)
    seed: int = 0
    feature_cache: Path | None = None
    overwrite: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        for name in PATHS:
            value = getattr(self, name)
            if isinstance(value, str):
                object.__setattr__(self, name, Path(value))
        if all(getattr(self, name) is None for name in WEIGHTS) and (folder := snapshot_of(self.model)) is not None:
            object.__setattr__(self, "checkpoint", folder)
        if self.classes or not self.takes_labels:
            object.__setattr__(self, "classes", check_classes(self.classes, source="the class list"))
        if isinstance(self.pin, str):
            object.__setattr__(self, "pin", (self.pin,))
        check(self)

    @property
    def uses_calip(self) -> bool:
        """Whether CALIP may be used."""
        return self.calip is not False and self.head_mode == BAKED

    @property
    def pixel_input(self) -> PixelInput | None:
        """What the graph takes, where it takes raw pixels."""
        if not self.pixels:
            return None
        size = _pixels_size(self.pixels_size)
        form = self.resize_form or (OP if size is None else MATMUL)
        return PixelInput(channels=self.channel_order, size=size, resize=form, passes=passes_of(PIL.__version__))

    @property
    def takes_labels(self) -> bool:
        """Whether the text tower is in the bundle, and labels are given when it is used."""
        return self.head_mode in (OPEN, EMBED)

    @property
    def weights_of_views(self) -> tuple[float, ...] | None:
        """Those that are given, or None."""
        return None if self.view_weights in (EQUAL, SEARCH) else tuple(map(float, self.view_weights.split(",")))


def snapshot_of(model: str) -> Path | None:
    """The folder of a hub's snapshot that a model is given by; None for a name or another configuration."""
    path = Path(model)
    if path.name == SNAPSHOT:
        return path.parent
    # A folder may be called like a model, or be anything else.
    return path if model and (path / SNAPSHOT).is_file() else None


def _pixels_size(text: str | None) -> tuple[int, int] | None:
    """Height and width out of "480x640"."""
    if text is None:
        return None
    numbers = text.lower().split("x")
    if len(numbers) != 2 or not all(number.strip().isdecimal() and int(number) for number in numbers):  # noqa: PLR2004
        message = f"pixels_size is {text!r}: expected height x width, such as 480x640"
        raise UsageError(message)
    height, width = map(int, numbers)
    return height, width
