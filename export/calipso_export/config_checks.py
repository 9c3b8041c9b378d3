"""Refuses settings of an export that cannot be, or do not go together, before anything is loaded."""

import dataclasses
import math
from typing import TYPE_CHECKING

from calipso_export.choices import (
    ACTIVATIONS,
    BAKED,
    EQUAL,
    HEAD_MODES,
    INPUTS,
    IO_DTYPES,
    NO_CALIP,
    OPEN_OUTPUTS,
    OPSETS,
    OUTPUTS,
    SEARCH,
    TARGETS,
    VIEW_COUNTS,
    WEIGHTS,
)
from calipso_export.heads import AUTO, DEFAULT, FEW_SHOT
from calipso_export.templates import DEFAULT_TEMPLATES
from calipso_runtime.errors import BundleSchemaError, UsageError
from calipso_runtime.manifest import Preprocess
from calipso_runtime.parity import Gates
from calipso_runtime.pixel_input import OP

if TYPE_CHECKING:
    from collections.abc import Iterable

    from calipso_export.config import ExportConfig

_MOST_SEED = 2**63 - 1
_FEWEST_POINTS = 1
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


def check(config: "ExportConfig") -> None:
    """Raise UsageError for the first setting that cannot be."""
    if not all(isinstance(name, str) for name in config.pin):
        message = f"pin is {config.pin!r}: expected names of layers or nodes"
        raise UsageError(message)
    _check_gates(config)
    _check_weights(config)
    _check_preprocess(config)
    _check_text(config)
    _check_few_shot(config)
    _check_head(config)
    _check_calip_fs(config)
    _check_unknown(config)
    _check_graph(config)
    _check_precision(config)
    _check_points(config)
    _check_pixels(config)


def _check_gates(config: "ExportConfig") -> None:
    if isinstance(config.gates, Gates):
        return
    known = [field.name for field in dataclasses.fields(Gates)]
    unknown = sorted(set(config.gates) - set(known))
    if unknown:
        message = f"unknown gates: {', '.join(unknown)}. Known: {', '.join(known)}"
        raise UsageError(message)
    Gates(**config.gates)


def _check_weights(config: "ExportConfig") -> None:
    given = [name for name in WEIGHTS if getattr(config, name) is not None]
    if len(given) != 1:
        message = (
            f"weights come from exactly one of pretrained, checkpoint and random_init; given: "
            f"{', '.join(given) or 'none'}"
        )
        raise UsageError(message)
    if config.activation not in (None, *ACTIVATIONS):
        message = f"activation is {config.activation!r}: expected one of {', '.join(ACTIVATIONS)}"
        raise UsageError(message)
    if config.random_init is not None and not 0 <= config.random_init <= _MOST_SEED:
        message = f"random_init is {config.random_init}: expected a seed from 0 to {_MOST_SEED}"
        raise UsageError(message)


def _check_preprocess(config: "ExportConfig") -> None:
    unknown = sorted(set(config.preprocess) - set(_PREPROCESS))
    if unknown:
        message = f"preprocess has unknown settings: {', '.join(unknown)}. Known: {', '.join(_PREPROCESS)}"
        raise UsageError(message)
    try:
        Preprocess(**{"size": (1, 1), "mean": (0.0,) * 3, "std": (1.0,) * 3, **config.preprocess})
    except BundleSchemaError as error:
        raise UsageError(str(error)) from error


def _check_text(config: "ExportConfig") -> None:
    if config.text_weights is not None and config.templates != DEFAULT_TEMPLATES:
        message = f"text_weights replaces the prompts, and templates is {config.templates!r}: give one of them"
        raise UsageError(message)


def _check_few_shot(config: "ExportConfig") -> None:
    if config.head not in (*FEW_SHOT, AUTO):
        message = f"head is {config.head!r}: expected one of {', '.join((*FEW_SHOT, AUTO))}"
        raise UsageError(message)
    if config.head == DEFAULT:
        return
    contradictions = (
        (not config.cache, f"head is {config.head!r}, but few-shot heads are switched off: leave out --no-cache"),
        (
            config.alpha is not None or config.cache_file is not None,
            f"head is {config.head!r}, but alpha, beta and cache_file are {DEFAULT}'s own: leave them out",
        ),
        (config.shots is None, f"head is {config.head!r}, and there are no photos to fit it on: give --shots DIR"),
    )
    _refuse(contradictions)


def _check_head(config: "ExportConfig") -> None:
    for first, second in (("alpha", "beta"), ("b2", "b3")):
        values = (getattr(config, first), getattr(config, second))
        if (values[0] is None) != (values[1] is None):
            message = f"{first} and {second} belong together: give both, or neither to have them searched"
            raise UsageError(message)
        if any(value is not None and (not math.isfinite(value) or value < 0) for value in values):
            message = f"{first} and {second} are {values}: expected finite numbers of at least 0"
            raise UsageError(message)
    has_keys = config.shots is not None or config.cache_file is not None
    contradictions = (
        (config.alpha == 0, "alpha is 0, which is no cache at all: use --no-cache (cache=False)"),
        (config.beta == 0, "beta is 0, with which the cache says the same of every picture: give more"),
        (
            config.shots is not None and config.cache_file is not None,
            "shots and cache_file both give a cache: give one",
        ),
        (
            config.cache_file is not None and config.cache and config.alpha is None,
            "cache_file holds ready keys and no photos to search on: give alpha and beta",
        ),
        (
            config.cache and config.alpha is not None and not has_keys,
            "alpha and beta weigh a cache, and there are no shots to fill it: give --shots DIR",
        ),
        (not config.cache and config.alpha is not None, "alpha and beta are given, but the cache is switched off"),
        (not config.cache and config.cache_file is not None, "cache_file is given, but the cache is switched off"),
        (
            config.calip is False and config.b2 is not None,
            "b2 and b3 are given, but CALIP is switched off",
        ),
    )
    _refuse(contradictions)


def _check_calip_fs(config: "ExportConfig") -> None:
    if not config.calip_fs:
        return
    contradictions = (
        (config.head_mode != BAKED, NO_CALIP),
        (config.calip is False, "calip_fs learns layers of CALIP, which is switched off: leave out --no-calip"),
        (config.b2 == 0 and config.b3 == 0, "calip_fs learns layers of CALIP, and b2 and b3 are 0: leave them out"),
        (config.shots is None, "calip_fs learns layers on photos, and there are none to learn on: give --shots DIR"),
        (
            config.unknown_at is not None,
            "calip_fs does not go with unknown_at: layers know the classes that it holds out. Leave one out",
        ),
    )
    _refuse(contradictions)


def _check_unknown(config: "ExportConfig") -> None:
    if config.unknown_at is None:
        return
    if not 0 <= config.unknown_at < 1:
        message = f"unknown_at is {config.unknown_at}: expected a share of false accepts, at least 0 and below 1"
        raise UsageError(message)
    if config.shots is None:
        message = "unknown_at chooses a threshold on example photos, and there are none: give --shots DIR"
        raise UsageError(message)


def _check_graph(config: "ExportConfig") -> None:
    if config.opset not in OPSETS:
        message = f"opset is {config.opset}: expected one of {', '.join(map(str, OPSETS))}"
        raise UsageError(message)
    unknown = [name for name in config.outputs if name not in OUTPUTS]
    if unknown or "logits" not in config.outputs or len(set(config.outputs)) != len(config.outputs):
        message = f"outputs are {config.outputs}: expected `logits` and names out of {', '.join(OUTPUTS)}, each once"
        raise UsageError(message)
    if config.epochs < 0:
        message = f"epochs is {config.epochs}: expected a number of augmented views, 0 for the photo as it is"
        raise UsageError(message)
    _check_head_mode(config)


def _check_head_mode(config: "ExportConfig") -> None:
    if config.head_mode not in HEAD_MODES:
        message = f"head_mode is {config.head_mode!r}: expected one of {', '.join(HEAD_MODES)}"
        raise UsageError(message)
    if config.head_mode == BAKED:
        return
    if config.takes_labels:
        _check_open(config)
        return
    if config.b2 is not None:
        raise UsageError(NO_CALIP)
    if config.head != DEFAULT:
        message = f"head is {config.head!r}: with head_mode inputs it is {DEFAULT}, which is what can be taught"
        raise UsageError(message)
    if config.input != INPUTS[0]:
        message = f"input is {config.input!r}: with head_mode inputs it is {INPUTS[0]!r}, so far"
        raise UsageError(message)
    if "embedding" not in config.outputs:
        message = f"outputs are {config.outputs}: with head_mode inputs `embedding` is one, classes are taught by it"
        raise UsageError(message)


def _check_open(config: "ExportConfig") -> None:
    for name, absent, reason in _NEEDS_CLASSES:
        if getattr(config, name) != absent:
            message = f"{name} does not go with head_mode {config.head_mode}: {reason}. Leave it out, or bake the head"
            raise UsageError(message)
    contradictions = (
        (
            config.input != INPUTS[0],
            f"input is {config.input!r}: with head_mode {config.head_mode} it is {INPUTS[0]!r}",
        ),
        (
            set(config.outputs) != set(OPEN_OUTPUTS),
            f"outputs are {config.outputs}: with head_mode {config.head_mode} they are {' and '.join(OPEN_OUTPUTS)}",
        ),
        (
            config.precision == "auto",
            f"precision auto weighs accuracy on known classes, and head_mode {config.head_mode} has none: name one",
        ),
    )
    _refuse(contradictions)


def _check_precision(config: "ExportConfig") -> None:
    for name, value, allowed in (("target", config.target, TARGETS), ("io_dtype", config.io_dtype, IO_DTYPES)):
        if value is not None and value not in allowed:
            message = f"{name} is {value!r}: expected {' or '.join(allowed)}"
            raise UsageError(message)
    if not 0 <= config.max_drop <= 100:  # noqa: PLR2004 - percentage points
        message = f"max_drop is {config.max_drop}: expected percentage points from 0 to 100"
        raise UsageError(message)
    if not math.isfinite(config.repair_minutes) or config.repair_minutes < 0:
        message = f"repair_minutes is {config.repair_minutes}: expected a finite number of at least 0"
        raise UsageError(message)
    if config.calib_pictures < 1:
        message = f"calib_pictures is {config.calib_pictures}: expected at least 1"
        raise UsageError(message)


def _check_points(config: "ExportConfig") -> None:
    if config.input not in INPUTS:
        message = f"input is {config.input!r}: expected {' or '.join(INPUTS)}"
        raise UsageError(message)
    if config.views not in VIEW_COUNTS or config.points < _FEWEST_POINTS:
        message = f"views is {config.views} and points {config.points}: expected 6 or 10 views, and at least 1 point"
        raise UsageError(message)
    _check_view_weights(config)
    if config.input == "points" and config.io_dtype != "fp32":
        message = f"io_dtype is {config.io_dtype}: coordinates of points need fp32, at every precision of the graph"
        raise UsageError(message)
    if config.view_weights == SEARCH and config.input == "points" and config.shots is None:
        message = "view_weights are to be searched, and there are no shots to search on: give --shots DIR"
        raise UsageError(message)


def _check_pixels(config: "ExportConfig") -> None:
    settings = {"pixels_size": None, "channel_order": "rgb", "resize_form": None}
    given = [name for name, default in settings.items() if getattr(config, name) != default]
    if not config.pixels:
        if given:
            message = f"{', '.join(given)} say how pixels are taken, and the graph takes none: give --pixels too"
            raise UsageError(message)
        return
    if config.input != INPUTS[0]:
        message = f"pixels are pictures, and input is {config.input!r}: leave one of them out"
        raise UsageError(message)
    try:
        taken = config.pixel_input
    except BundleSchemaError as error:
        message = f"{error} (--channel-order, --resize-form, --pixels-size)"
        raise UsageError(message) from error
    if taken is not None and taken.resize == OP and config.target == "gpu":
        message = (
            "resize_form is op, which engines of GPUs do not compute as Pillow does: give --pixels-size HxW, the "
            "size of the camera's pictures, or leave out --target gpu"
        )
        raise UsageError(message)


def _check_view_weights(config: "ExportConfig") -> None:
    try:
        weights = config.weights_of_views
    except ValueError:
        weights = ()
    if weights is None:
        return
    if len(weights) != config.views or not all(0 <= each < math.inf for each in weights) or not any(weights):
        message = (
            f"view_weights is {config.view_weights!r}: expected {EQUAL}, {SEARCH}, or {config.views} numbers of at "
            "least 0 with commas, not all 0"
        )
        raise UsageError(message)


def _refuse(contradictions: "Iterable[tuple[bool, str]]") -> None:
    """Raise UsageError with the message of the first that holds."""
    for contradicts, message in contradictions:
        if contradicts:
            raise UsageError(message)
