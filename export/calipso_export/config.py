"""Everything that an export can be told, validated once."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import PIL

from calipso_export.classes import check_classes
from calipso_export.heads import AUTO, DEFAULT, FEW_SHOT
from calipso_export.templates import DEFAULT_TEMPLATES
from calipso_runtime.bundle import Preprocess
from calipso_runtime.errors import BundleSchemaError, UsageError
from calipso_runtime.parity import Gates
from calipso_runtime.pixel_input import MATMUL, OP, PixelInput, passes_of

OPSETS = (18, 20, 22)
_MOST_SEED = 2**63 - 1
OUTPUTS = ("logits", "embedding", "probabilities", "tokens")
TARGETS = ("cpu", "gpu")
IO_DTYPES = ("fp32", "fp16")
INPUTS = ("image", "points")
VIEW_COUNTS = (6, 10)
# By name, beside weights that are given: the same for all views, or searched on the shots.
EQUAL, SEARCH = "equal", "search"
_FEWEST_POINTS = 1
BAKED, AS_INPUTS, OPEN, EMBED = HEAD_MODES = ("baked", "inputs", "open", "embed")
# What the graphs of a bundle give that takes any labels.
OPEN_OUTPUTS = ("logits", "embedding")
NO_CALIP = (
    "CALIP does not go with head_mode inputs: what is taught is calibrated, and checked in numpy, from embeddings "
    "alone, and CALIP needs every token of every photo. Leave --calip, --calip-fs, --b2 and --b3 away, or bake the head"
)
NO_OPEN_CALIP = (
    "CALIP does not go with head modes open and embed: its weights are searched on example photos of known classes. "
    "Leave --calip, --b2 and --b3 away, or bake the head"
)
# What needs classes that are known at the export: setting, the value that leaves it out, and what to do instead.
_NEEDS_CLASSES = (
    ("shots", None, "example photos belong to classes: give pictures as --verify-data or --calib-data"),
    ("cache_file", None, "keys belong to classes"),
    ("text_weights", None, "text features belong to classes, and this bundle makes those of any text itself"),
    ("alpha", None, "it weighs a cache, and keys belong to classes"),
    ("b2", None, "CALIP is searched on example photos, and needs every token of every picture"),
    ("unknown_at", None, "a threshold is found on example photos"),
    ("head", DEFAULT, "few-shot heads are fitted on example photos"),
)
# What may be overridden of open_clip's `preprocess_cfg`; the size is the model's own.
_PREPROCESS = ("mean", "std", "interpolation", "resize_mode", "fill_color")
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
        model: an open_clip model name, or the path of an open_clip model configuration (`.json`).
        classes: class names, in the order of the logits; of head modes "open" and "embed" those that are meant where a
            call names none, and there may be none.
        output: the bundle to write, a directory.
        pretrained: an open_clip pretrained tag; downloads the weights. One of these three is needed:
        checkpoint: a `.safetensors` file, or a `torch.save` file that loads with `weights_only=True`.
        random_init: seed of random weights, to measure without a checkpoint.
        tokenizer: a folder with the files of a Hugging Face tokenizer, for models that take theirs from the hub.
        text_model: a folder with the `config.json` of a Hugging Face text model, for models whose text tower is one.
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
        opset: ONNX opset of the graph.
        precision: number format of the graph, a name out of `precision.PRECISIONS`, or "auto": the first of those
            for the target, fastest first, that passes its gates and loses at most `max_drop`.
        target: where it will run, for "auto": "cpu" or "gpu"; what this machine has where None.
        max_drop: for "auto", how many percentage points of top-1 accuracy may be lost.
        io_dtype: type of the graph's input and outputs, "fp32" or "fp16".
        calib_data: pictures to measure the ranges of activations on; the shots where None.
        calib_pictures: how many of them at most.
        reduce_range: 7-bit weights in int8 graphs, for CPUs without VNNI, which saturate with 8.
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
    reduce_range: bool = False
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
        if self.classes or not self.takes_labels:
            object.__setattr__(self, "classes", check_classes(self.classes, source="the class list"))
        self._check_pin()
        self._check_gates()
        self._check_weights()
        self._check_preprocess()
        self._check_text()
        self._check_few_shot()
        self._check_head()
        self._check_calip_fs()
        self._check_unknown()
        self._check_graph()
        self._check_precision()
        self._check_points()
        self._check_pixels()

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

    def _check_pin(self) -> None:
        if isinstance(self.pin, str):
            object.__setattr__(self, "pin", (self.pin,))
        if not all(isinstance(name, str) for name in self.pin):
            message = f"pin is {self.pin!r}: expected names of layers or nodes"
            raise UsageError(message)

    def _check_gates(self) -> None:
        if isinstance(self.gates, Gates):
            return
        known = [field.name for field in dataclasses.fields(Gates)]
        unknown = sorted(set(self.gates) - set(known))
        if unknown:
            message = f"unknown gates: {', '.join(unknown)}. Known: {', '.join(known)}"
            raise UsageError(message)
        Gates(**self.gates)

    def _check_weights(self) -> None:
        given = [name for name in ("pretrained", "checkpoint", "random_init") if getattr(self, name) is not None]
        if len(given) != 1:
            message = (
                f"weights come from exactly one of pretrained, checkpoint and random_init; given: "
                f"{', '.join(given) or 'none'}"
            )
            raise UsageError(message)
        if self.random_init is not None and not 0 <= self.random_init <= _MOST_SEED:
            message = f"random_init is {self.random_init}: expected a seed from 0 to {_MOST_SEED}"
            raise UsageError(message)

    def _check_preprocess(self) -> None:
        unknown = sorted(set(self.preprocess) - set(_PREPROCESS))
        if unknown:
            message = f"preprocess has unknown settings: {', '.join(unknown)}. Known: {', '.join(_PREPROCESS)}"
            raise UsageError(message)
        try:
            Preprocess(**{"size": (1, 1), "mean": (0.0,) * 3, "std": (1.0,) * 3, **self.preprocess})
        except BundleSchemaError as error:
            raise UsageError(str(error)) from error

    def _check_text(self) -> None:
        if self.text_weights is not None and self.templates != DEFAULT_TEMPLATES:
            message = f"text_weights replaces the prompts, and templates is {self.templates!r}: give one of them"
            raise UsageError(message)

    def _check_few_shot(self) -> None:
        if self.head not in (*FEW_SHOT, AUTO):
            message = f"head is {self.head!r}: expected one of {', '.join((*FEW_SHOT, AUTO))}"
            raise UsageError(message)
        if self.head == DEFAULT:
            return
        contradictions = (
            (not self.cache, f"head is {self.head!r}, but few-shot heads are switched off: leave out --no-cache"),
            (
                self.alpha is not None or self.cache_file is not None,
                f"head is {self.head!r}, but alpha, beta and cache_file are {DEFAULT}'s own: leave them out",
            ),
            (self.shots is None, f"head is {self.head!r}, and there are no photos to fit it on: give --shots DIR"),
        )
        for contradicts, message in contradictions:
            if contradicts:
                raise UsageError(message)

    def _check_head(self) -> None:
        for first, second in (("alpha", "beta"), ("b2", "b3")):
            values = (getattr(self, first), getattr(self, second))
            if (values[0] is None) != (values[1] is None):
                message = f"{first} and {second} belong together: give both, or neither to have them searched"
                raise UsageError(message)
            if any(value is not None and (not math.isfinite(value) or value < 0) for value in values):
                message = f"{first} and {second} are {values}: expected finite numbers of at least 0"
                raise UsageError(message)
        has_keys = self.shots is not None or self.cache_file is not None
        contradictions = (
            (self.alpha == 0, "alpha is 0, which is no cache at all: use --no-cache (cache=False)"),
            (self.beta == 0, "beta is 0, with which the cache says the same of every picture: give more"),
            (
                self.shots is not None and self.cache_file is not None,
                "shots and cache_file both give a cache: give one",
            ),
            (
                self.cache_file is not None and self.cache and self.alpha is None,
                "cache_file holds ready keys and no photos to search on: give alpha and beta",
            ),
            (
                self.cache and self.alpha is not None and not has_keys,
                "alpha and beta weigh a cache, and there are no shots to fill it: give --shots DIR",
            ),
            (not self.cache and self.alpha is not None, "alpha and beta are given, but the cache is switched off"),
            (not self.cache and self.cache_file is not None, "cache_file is given, but the cache is switched off"),
            (
                self.calip is False and self.b2 is not None,
                "b2 and b3 are given, but CALIP is switched off",
            ),
        )
        for contradicts, message in contradictions:
            if contradicts:
                raise UsageError(message)

    def _check_calip_fs(self) -> None:
        if not self.calip_fs:
            return
        contradictions = (
            (self.head_mode != BAKED, NO_CALIP),
            (self.calip is False, "calip_fs learns layers of CALIP, which is switched off: leave out --no-calip"),
            (self.b2 == 0 and self.b3 == 0, "calip_fs learns layers of CALIP, and b2 and b3 are 0: leave them out"),
            (self.shots is None, "calip_fs learns layers on photos, and there are none to learn on: give --shots DIR"),
            (
                self.unknown_at is not None,
                "calip_fs does not go with unknown_at: layers know the classes that it holds out. Leave one out",
            ),
        )
        for contradicts, message in contradictions:
            if contradicts:
                raise UsageError(message)

    def _check_unknown(self) -> None:
        if self.unknown_at is None:
            return
        if not 0 <= self.unknown_at < 1:
            message = f"unknown_at is {self.unknown_at}: expected a share of false accepts, at least 0 and below 1"
            raise UsageError(message)
        if self.shots is None:
            message = "unknown_at chooses a threshold on example photos, and there are none: give --shots DIR"
            raise UsageError(message)

    def _check_graph(self) -> None:
        if self.opset not in OPSETS:
            message = f"opset is {self.opset}: expected one of {', '.join(map(str, OPSETS))}"
            raise UsageError(message)
        unknown = [name for name in self.outputs if name not in OUTPUTS]
        if unknown or "logits" not in self.outputs or len(set(self.outputs)) != len(self.outputs):
            message = f"outputs are {self.outputs}: expected `logits` and names out of {', '.join(OUTPUTS)}, each once"
            raise UsageError(message)
        if self.epochs < 0:
            message = f"epochs is {self.epochs}: expected a number of augmented views, 0 for the photo as it is"
            raise UsageError(message)
        self._check_head_mode()

    def _check_head_mode(self) -> None:
        if self.head_mode not in HEAD_MODES:
            message = f"head_mode is {self.head_mode!r}: expected one of {', '.join(HEAD_MODES)}"
            raise UsageError(message)
        if self.head_mode == BAKED:
            return
        if self.takes_labels:
            self._check_open()
            return
        if self.b2 is not None:
            raise UsageError(NO_CALIP)
        if self.head != DEFAULT:
            message = f"head is {self.head!r}: with head_mode inputs it is {DEFAULT}, which is what can be taught"
            raise UsageError(message)
        if self.input != INPUTS[0]:
            message = f"input is {self.input!r}: with head_mode inputs it is {INPUTS[0]!r}, so far"
            raise UsageError(message)
        if "embedding" not in self.outputs:
            message = f"outputs are {self.outputs}: with head_mode inputs `embedding` is one, classes are taught by it"
            raise UsageError(message)

    def _check_open(self) -> None:
        for name, absent, reason in _NEEDS_CLASSES:
            if getattr(self, name) != absent:
                message = (
                    f"{name} does not go with head_mode {self.head_mode}: {reason}. Leave it out, or bake the head"
                )
                raise UsageError(message)
        contradictions = (
            (self.input != INPUTS[0], f"input is {self.input!r}: with head_mode {self.head_mode} it is {INPUTS[0]!r}"),
            (
                set(self.outputs) != set(OPEN_OUTPUTS),
                f"outputs are {self.outputs}: with head_mode {self.head_mode} they are {' and '.join(OPEN_OUTPUTS)}",
            ),
            (
                self.precision == "auto",
                f"precision auto weighs accuracy on known classes, and head_mode {self.head_mode} has none: name one",
            ),
        )
        for contradicts, message in contradictions:
            if contradicts:
                raise UsageError(message)

    def _check_precision(self) -> None:
        for name, value, allowed in (("target", self.target, TARGETS), ("io_dtype", self.io_dtype, IO_DTYPES)):
            if value is not None and value not in allowed:
                message = f"{name} is {value!r}: expected {' or '.join(allowed)}"
                raise UsageError(message)
        if not 0 <= self.max_drop <= 100:  # noqa: PLR2004 - percentage points
            message = f"max_drop is {self.max_drop}: expected percentage points from 0 to 100"
            raise UsageError(message)
        if not math.isfinite(self.repair_minutes) or self.repair_minutes < 0:
            message = f"repair_minutes is {self.repair_minutes}: expected a finite number of at least 0"
            raise UsageError(message)
        if self.calib_pictures < 1:
            message = f"calib_pictures is {self.calib_pictures}: expected at least 1"
            raise UsageError(message)

    def _check_points(self) -> None:
        if self.input not in INPUTS:
            message = f"input is {self.input!r}: expected {' or '.join(INPUTS)}"
            raise UsageError(message)
        if self.views not in VIEW_COUNTS or self.points < _FEWEST_POINTS:
            message = f"views is {self.views} and points {self.points}: expected 6 or 10 views, and at least 1 point"
            raise UsageError(message)
        self._check_view_weights()
        if self.input == "points" and self.io_dtype != "fp32":
            message = f"io_dtype is {self.io_dtype}: coordinates of points need fp32, at every precision of the graph"
            raise UsageError(message)
        if self.view_weights == SEARCH and self.input == "points" and self.shots is None:
            message = "view_weights are to be searched, and there are no shots to search on: give --shots DIR"
            raise UsageError(message)

    def _check_pixels(self) -> None:
        settings = {"pixels_size": None, "channel_order": "rgb", "resize_form": None}
        given = [name for name, default in settings.items() if getattr(self, name) != default]
        if not self.pixels:
            if given:
                message = f"{', '.join(given)} say how pixels are taken, and the graph takes none: give --pixels too"
                raise UsageError(message)
            return
        if self.input != INPUTS[0]:
            message = f"pixels are pictures, and input is {self.input!r}: leave one of them out"
            raise UsageError(message)
        try:
            taken = self.pixel_input
        except BundleSchemaError as error:
            message = f"{error} (--channel-order, --resize-form, --pixels-size)"
            raise UsageError(message) from error
        if taken is not None and taken.resize == OP and self.target == "gpu":
            message = (
                "resize_form is op, which engines of GPUs do not compute as Pillow does: give --pixels-size HxW, the "
                "size of the camera's pictures, or leave out --target gpu"
            )
            raise UsageError(message)

    def _check_view_weights(self) -> None:
        try:
            weights = self.weights_of_views
        except ValueError:
            weights = ()
        if weights is None:
            return
        if len(weights) != self.views or not all(0 <= each < math.inf for each in weights) or not any(weights):
            message = (
                f"view_weights is {self.view_weights!r}: expected {EQUAL}, {SEARCH}, or {self.views} numbers of at "
                "least 0 with commas, not all 0"
            )
            raise UsageError(message)


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
