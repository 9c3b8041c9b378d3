"""What `--model` may be: a name of open_clip, a model configuration, or a hub's snapshot of one with its weights."""

import difflib
import functools
import json
import tempfile
from pathlib import Path
from typing import Any

from calipso_export.choices import SNAPSHOT
from calipso_export.clip import open_clip
from calipso_export.files import read_structured
from calipso_runtime.errors import ModelError, UsageError

HUB = "hf-hub:"
# A user's configuration must not replace a built-in one, nor another user's, for the rest of the process.
_BUILT_IN = frozenset(open_clip.list_models())
_REGISTERED: dict[str, Path] = {}


def architecture_of(model: str) -> Path | None:
    """The file of the architecture that a model is given by; None for a name.

    Raises:
        ModelError: a folder without one.
    """
    path = Path(model)
    if model and path.is_dir():
        if not (path / SNAPSHOT).is_file():
            # A folder may be called like a model.
            if model in _BUILT_IN:
                return None
            message = (
                f"the folder {path} has no {SNAPSHOT}, which says what the model is: give its name with --model, and "
                "the folder with --checkpoint"
            )
            raise ModelError(message)
        return path / SNAPSHOT
    return path if path.suffix == ".json" else None


def plain_file(path: Path) -> Path:
    """The same architecture as a file that open_clip takes, named like the model.

    A snapshot's configuration holds the architecture beside the preprocessing, and is named alike in all of them: its
    model is called like its folder.
    """
    document = _document(path)
    if "model_cfg" not in document:
        return path
    plain = Path(_unpacked().name) / f"{path.resolve().parent.name}.json"
    plain.write_text(json.dumps(document["model_cfg"]), encoding="utf-8")
    return plain


def registered_name(model: str) -> str:
    """The name under which open_clip builds it.

    Raises:
        ModelError: there is no such model, or its configuration is none.
    """
    path = architecture_of(model)
    if path is None:
        return _known_name(model)
    if not path.is_file():
        message = f"the model configuration {path} does not exist"
        raise ModelError(message)
    _check(path)
    plain = plain_file(path)
    if _REGISTERED.setdefault(plain.stem, path.resolve()) != path.resolve() or plain.stem in _BUILT_IN:
        what = "file" if plain is path else "folder"
        message = f"{path} is called like a model that open_clip knows already, {plain.stem}: rename the {what}"
        raise ModelError(message)
    open_clip.add_model_config(plain)
    return plain.stem


@functools.cache
def _unpacked() -> tempfile.TemporaryDirectory[str]:
    """Architectures from snapshots as files of their own: open_clip takes nothing else. Removed when Python exits."""
    return tempfile.TemporaryDirectory(prefix="calipso-models-")


def _known_name(model: str) -> str:
    name = model.replace("/", "-")
    if ":" in model or open_clip.get_model_config(name) is None:
        known = {known.lower(): known for known in open_clip.list_models()}
        close = difflib.get_close_matches(name.lower(), known, n=3)
        hint = f" Did you mean {', '.join(known[each] for each in close)}?" if close else ""
        if model.startswith(HUB):
            hint = f" Download {model.removeprefix(HUB)} and give its folder"
        message = f"open_clip has no model called {model!r}.{hint} `open_clip.list_models()` names them all"
        raise ModelError(message)
    return name


def _document(path: Path) -> dict[str, Any]:
    """open_clip skips a file that is no configuration, and cannot load any model after one that is no JSON."""
    try:
        document = read_structured(path)
    except UsageError as error:
        message = f"the model configuration cannot be used: {error}"
        raise ModelError(message) from error
    return document if isinstance(document, dict) else {}


def _check(path: Path) -> None:
    document = _document(path)
    document = document.get("model_cfg", document)
    tables = [document.get(name) for name in ("vision_cfg", "text_cfg")] if isinstance(document, dict) else [None]
    if "embed_dim" not in document or not all(isinstance(table, dict) for table in tables):
        message = f"{path} is not an open_clip model configuration: expected embed_dim, vision_cfg and text_cfg"
        raise ModelError(message)
