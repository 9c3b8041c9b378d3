"""The text tower, in eager PyTorch: prompts in, features out.

CLIP's text transformer is causal, and its feature is read at the end-of-text token. What stands
after that token cannot reach it, so a batch is cut behind its last end-of-text token: the same
feature, over the 12 positions of a short prompt, say, instead of all 77.
"""

from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from calipso_export.clip import open_clip

# open_clip's name for "at the token with the highest id", which is the end-of-text token.
_POOLED_AT_END = "argmax"


def encode_text(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Encode tokenised prompts.

    Args:
        model: an open_clip model.
        tokens: int64 [N,context_length].

    Returns:
        float32 [N,D], each L2-normalised.
    """
    module = cast("Any", model)
    if not _can_be_cut(module):
        return cast("torch.Tensor", module.encode_text(tokens, normalize=True))
    length = int(tokens.argmax(dim=-1).max()) + 1
    tokens = tokens[:, :length]
    x = module.token_embedding(tokens) + module.positional_embedding[:length]
    x = module.ln_final(module.transformer(x, attn_mask=module.attn_mask[:length, :length]))
    x = x[torch.arange(len(x)), tokens.argmax(dim=-1)]
    projection = module.text_projection
    if projection is not None:
        x = projection(x) if isinstance(projection, nn.Linear) else x @ projection
    return functional.normalize(x, dim=-1)


def _can_be_cut(module: Any) -> bool:
    return (
        isinstance(module, open_clip.CLIP)
        and module.attn_mask is not None
        and module.text_pool_type == _POOLED_AT_END
        and module.token_embedding.weight.dtype == torch.float32
    )
