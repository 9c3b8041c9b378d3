"""Text towers and tokenizers that open_clip takes from the Hugging Face hub: from there, or from a local folder.

What is missing is said before anything long. Of a text model its configuration alone is read: the weights are the
checkpoint's, as those of everything else. No code of a model is ever run.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calipso_export.checkpoints import first_line
from calipso_export.clip import open_clip, with_transformers
from calipso_export.config import ExportConfig
from calipso_runtime.errors import ModelError

# Of a text tower that is built because open_clip builds one, and never asked.
_STAND_IN = {"context_length": 4, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}
# What transformers and huggingface_hub raise where something is missing, damaged, or wants code of its own to be run.
_LOADING_ERRORS = (ImportError, OSError, TypeError, ValueError, AttributeError, AssertionError, LookupError)

Json = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextPlan:
    """How the text tower of a model is built.

    Attributes:
        settings: open_clip's settings of it, where they are not those of its configuration.
        rows: how many tokens it knows, where that is known.
        left_out: text features come from a file, and it would need more than the checkpoint.
    """

    settings: dict[str, Any] | None = None
    rows: int | None = None
    left_out: bool = False


def plan_text(config: ExportConfig, name: str, architecture: Json) -> TextPlan:
    """Find what the text tower is built from.

    Raises:
        ModelError: the text model's configuration is not in the folder, or cannot be had from the hub.
    """
    own = architecture["text_cfg"]
    hub_name = own.get("hf_model_name")
    if not hub_name:
        if config.text_model is not None:
            message = f"the text tower of {name} is not one of Hugging Face: leave out --text-model"
            raise ModelError(message)
        return TextPlan(rows=own.get("vocab_size"))
    if config.text_weights is not None and config.pretrained is None:
        return TextPlan(settings=dict(_STAND_IN), left_out=True)
    if config.text_model is not None:
        source = str(_folder(config.text_model, "--text-model"))
        rows = _rows(name, source, hub_name, local=True)
        return TextPlan(settings={**own, "hf_model_name": source, "hf_model_pretrained": False}, rows=rows)
    return TextPlan(rows=_rows(name, hub_name, hub_name, local=False))


def load_tokenizer(config: ExportConfig, name: str, architecture: Json, *, rows: int | None) -> Any:
    """open_clip's tokenizer of a model.

    Args:
        config: names the folder, where there is one.
        name: the model.
        architecture: open_clip's configuration of it.
        rows: how many tokens its text tower knows, where that is known.

    Raises:
        ModelError: it is not in the folder, cannot be had from the hub, or is another model's.
    """
    settings = architecture["text_cfg"]
    hub_name = settings.get("hf_tokenizer_name")
    # open_clip downloads these from elsewhere, where their name is all there is to go by.
    from_hub = bool(hub_name) or "siglip" in name.lower()
    if config.tokenizer is not None and not from_hub:
        message = f"the tokenizer of {name} is CLIP's own, which is built in: leave out --tokenizer"
        raise ModelError(message)
    if from_hub:
        with_transformers(f"the tokenizer of {name}")
    try:
        if config.tokenizer is None:
            tokenizer = open_clip.get_tokenizer(name, **({"trust_remote_code": False} if hub_name else {}))
        else:
            tokenizer = _local_tokenizer(_folder(config.tokenizer, "--tokenizer"), settings, named=bool(hub_name))
    except _LOADING_ERRORS as error:
        message = f"the tokenizer of {name} cannot be loaded: {first_line(error).rstrip('.')}"
        if config.tokenizer is None and from_hub:
            message += (
                f". Without a network, download tokenizer.json and tokenizer_config.json of {hub_name or name} from "
                "the Hugging Face hub elsewhere, and give their folder with --tokenizer DIR; or give the classes' text "
                "features with --text-weights FILE"
            )
        raise ModelError(message) from error
    _check_vocabulary(tokenizer, name, rows)
    return tokenizer


def _local_tokenizer(folder: Path, settings: Json, *, named: bool) -> Any:
    arguments = dict(settings.get("tokenizer_kwargs") or {}) if named else {"clean": "canonicalize"}
    return open_clip.tokenizer.HFTokenizer(
        str(folder),
        context_length=settings.get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH),
        tokenizer_mode=settings.get("tokenizer_mode"),
        **{**arguments, "trust_remote_code": False},
    )


def _check_vocabulary(tokenizer: Any, name: str, rows: int | None) -> None:
    inner = getattr(tokenizer, "tokenizer", None)
    tokens = len(inner) if inner is not None else int(tokenizer.vocab_size)
    if rows is not None and tokens > rows:
        message = f"the tokenizer has {tokens} tokens, and the text tower of {name} knows {rows}: it is another model's"
        raise ModelError(message)


def _folder(path: Path, option: str) -> Path:
    if not path.is_dir():
        message = f"{option} is {path}, which is no folder: expected one as downloaded from the Hugging Face hub"
        raise ModelError(message)
    return path


def _rows(name: str, source: str, hub_name: str, *, local: bool) -> int | None:
    """Tokens of a text model; its configuration is read to see whether it can be."""
    transformers = with_transformers(f"the text tower of {name}")
    try:
        found = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        return getattr(found, "vocab_size", None)
    except _LOADING_ERRORS as error:
        message = f"the text tower of {name} cannot be built: {first_line(error).rstrip('.')}. "
        if local:
            message += f"Expected is config.json of {hub_name} in {source}"
        else:
            message += (
                f"Without a network, download config.json of {hub_name} from the Hugging Face hub elsewhere, and give "
                "its folder with --text-model DIR; or give the classes' text features with --text-weights FILE"
            )
        raise ModelError(message) from error
