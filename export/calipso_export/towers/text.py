"""The text towers: token ids in, features out; restated so that they export, and cut short to encode prompts.

CLIP's text transformer is causal, and its feature is read at the end-of-text token. What stands
after that token cannot reach it, so a batch of prompts is cut behind its last end-of-text token: the same
feature, over the 12 positions of a short prompt, say, instead of all 77. A graph takes the whole context.
"""

from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from calipso_export.clip import open_clip
from calipso_export.towers.base import attend
from calipso_runtime.errors import ModelError

# open_clip's name for "at the token with the highest id", which is the end-of-text token.
_POOLED_AT_END = "argmax"
# Added to scores that must not count: exp of it is 0 in every float type, and unlike infinity it is in every range.
_MASKED = -1e4


class TextTower(nn.Module):
    """open_clip's text transformer, or another text encoder of it as its own module computes it.

    It shares the parameters of the model: nothing is copied.

    Args:
        model: an open_clip model: its own `CLIP`, `CustomTextCLIP` or `CoCa`.

    Raises:
        ModelError: its text transformer pools in a way that is not implemented.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        module = cast("Any", model)
        text = module.text if hasattr(module, "text") else module
        self.other: nn.Module | None = None
        if hasattr(module, "text") and not isinstance(text, open_clip.transformer.TextTransformer):
            self.other = text
            return
        self.token_embedding = text.token_embedding
        self.positional_embedding = text.positional_embedding
        self.transformer = text.transformer
        self.ln_final = text.ln_final
        self.text_projection = text.text_projection
        self.cls_emb = getattr(text, "cls_emb", None)
        self._is_causal = text.attn_mask is not None
        self._masks_pads = getattr(text, "use_pad_mask", False) or self.cls_emb is not None
        self._cls_mask_is_last = getattr(text, "correct_cls_mask", False)
        self._pad_id = getattr(text, "pad_id", 0)
        self._pool = text.pool_type if hasattr(text, "pool_type") else text.text_pool_type
        self._eos_id = text.eos_id if hasattr(text, "eos_id") else text.text_eos_id
        if self._pool not in ("argmax", "eos", "first", "last") and self.cls_emb is None:
            message = f"the text tower pools by {self._pool!r}: implemented are argmax, eos, first and last"
            raise ModelError(message)

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Encode texts.

        Args:
            token_ids: int64 [N,L].

        Returns:
            float32 [N,D], in the joint space, not normalised.
        """
        if self.other is not None:
            found = self.other(token_ids)
            return cast("torch.Tensor", found[0] if isinstance(found, tuple) else found)
        x = self.token_embedding(token_ids)
        if self.cls_emb is not None:
            x = torch.cat([x, self.cls_emb.expand(x.shape[0], 1, -1)], dim=1)
        x = x + self.positional_embedding[: x.shape[1]]
        mask = self._mask(token_ids, x.shape[1])
        for block in self.transformer.resblocks:
            x = _block(block, x, mask)
        pooled = self.ln_final(x[:, -1] if self.cls_emb is not None else self._pooled(x, token_ids))
        if self.text_projection is None:
            return cast("torch.Tensor", pooled)
        if isinstance(self.text_projection, nn.Linear):
            return cast("torch.Tensor", self.text_projection(pooled))
        return cast("torch.Tensor", pooled @ self.text_projection)

    @staticmethod
    def reference(model: nn.Module, token_ids: torch.Tensor) -> torch.Tensor:
        """The same through open_clip's own `encode_text`: what parity is measured against."""
        return cast("torch.Tensor", cast("Any", model).encode_text(token_ids, normalize=False))

    def _mask(self, token_ids: torch.Tensor, length: int) -> torch.Tensor | None:
        """What is added to the scores, [L,L] or [N,1,L,L] or [N,1,1,L], or None."""
        causal = torch.full((length, length), _MASKED).triu(1) if self._is_causal else None
        if not self._masks_pads:
            return causal
        pads = (token_ids == self._pad_id).to(self.positional_embedding.dtype) * _MASKED
        if self.cls_emb is not None:
            # In front: so open_clip has it, and so the released weights of CoCa were trained.
            none = torch.zeros_like(pads[:, :1])
            pads = torch.cat([pads, none] if self._cls_mask_is_last else [none, pads], dim=1)
        pads = pads[:, None, None]
        return pads if causal is None else pads + causal

    def _pooled(self, x: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
        """[N,L,W] -> [N,W], before the last normalisation, which is per token."""
        if self._pool == "first":
            return x[:, 0]
        if self._pool == "last":
            return x[:, -1]
        # Whole numbers: 16 bits of a float could not tell the ids of long vocabularies apart.
        found = token_ids if self._pool == _POOLED_AT_END else (token_ids == self._eos_id).to(torch.int64)
        place = found.argmax(dim=-1)
        return x.gather(1, place[:, None, None].expand(-1, 1, x.shape[-1]))[:, 0]


def _block(block: Any, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """A residual attention block; one of another kind by its own module."""
    if type(block) is not open_clip.transformer.ResidualAttentionBlock:
        return cast("torch.Tensor", block(x, attn_mask=mask))
    attention = block.attn
    query, key, value = functional.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias).chunk(
        3, dim=-1
    )
    attended = attention.out_proj(attend(query, key, value, heads=attention.num_heads, mask=mask))
    x = x + block.ls_1(attended)
    return cast("torch.Tensor", x + block.ls_2(block.mlp(block.ln_2(x))))


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
