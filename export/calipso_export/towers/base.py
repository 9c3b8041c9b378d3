"""What every vision tower gives: a global feature and spatial tokens, both in the joint space."""

import copy
from typing import ClassVar

import torch
from torch import nn

from calipso_runtime.errors import ModelError


class Tower(nn.Module):
    """Image in, (global, tokens) out, both projected to the joint space and not yet normalised.

    A tower wraps open_clip's own vision module and shares its parameters: nothing is copied. It
    restates the forward pass so that it exports to plain MatMul, Softmax and LayerNormalization
    nodes, and so that the spatial tokens, which open_clip drops or leaves unprojected, come out.

    Subclasses implement `accepts`, `forward` and `reference`, and are listed in `towers.TOWERS`.

    Args:
        visual: open_clip's vision module.
        with_tokens: whether `forward` gives tokens.

    Raises:
        ModelError: tokens are asked for, and `why_no_tokens` says why there are none.
    """

    family: ClassVar[str]

    def __init__(self, visual: nn.Module, *, with_tokens: bool) -> None:
        super().__init__()
        reason = self.why_no_tokens(visual) if with_tokens else None
        if reason is not None:
            message = f"the spatial tokens of this model are not defined: {reason}"
            raise ModelError(message)
        self.visual = visual
        self.with_tokens = with_tokens

    @classmethod
    def accepts(cls, visual: nn.Module) -> bool:
        """Whether this tower can restate that vision module."""
        raise NotImplementedError

    @classmethod
    def why_no_tokens(cls, visual: nn.Module) -> str | None:
        """Why the module's spatial tokens have no place in the joint space, which CALIP needs; None where they have.

        They have one where the head, which leads a feature to the joint space, acts on a single position.
        """
        del visual
        return None

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Encode images.

        Args:
            image: float32 [B,3,H,W], normalised.

        Returns:
            global feature float32 [B,D]; tokens float32 [B,P,D], or None without `with_tokens`.
        """
        raise NotImplementedError

    @property
    def rows(self) -> int | None:
        """Tokens of one picture that the blocks work on, or None where the tower is made of convolutions."""
        return None

    @classmethod
    def reference(cls, visual: nn.Module, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The same two tensors through open_clip's own modules: what parity is measured against.

        The tokens are None where `why_no_tokens` says that there are none.
        """
        raise NotImplementedError


def own_feature(visual: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """The global feature [B,D] by open_clip's own forward, as `encode_image` takes it: CoCa's towers give more.

    CoCa's with a pooler for nothing else give it as [B,1,D].
    """
    given = visual(image)
    feature: torch.Tensor = given[0] if isinstance(given, tuple) else given
    return feature.flatten(1)


def shared(module: nn.Module) -> nn.Module:
    """Modules of its own over the same parameters and buffers: what is changed in them leaves the original alone."""
    kept: dict[int, torch.Tensor] = {id(buffer): buffer for buffer in module.buffers()}
    for parameter in module.parameters():
        kept[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    return copy.deepcopy(module, kept)


def split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[B,L,H*E] -> [B,H,L,E]."""
    batch, length, width = x.shape
    return x.reshape(batch, length, heads, width // heads).transpose(1, 2)


def merge_heads(x: torch.Tensor) -> torch.Tensor:
    """[B,H,L,E] -> [B,L,H*E]."""
    batch, heads, length, size = x.shape
    return x.transpose(1, 2).reshape(batch, length, heads * size)


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, heads: int, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Softmax attention over already projected tensors.

    Written out, because `scaled_dot_product_attention` exports as two square-root scalings, and the
    fused kernels of the engines look for exactly this: scale on the query, MatMul, Softmax, MatMul.

    Args:
        query: [B,Lq,W], or [1,Lq,W] where all pictures ask the same; key and value: [B,L,W].
        key: see query.
        value: see query.
        heads: number of heads; divides W.
        mask: added to the scores, [Lq,L] or [B,1,Lq,L] or [B,1,1,L].

    Returns:
        [B,Lq,W].
    """
    size = query.shape[-1] // heads
    scores = split_heads(query * size**-0.5, heads) @ split_heads(key, heads).transpose(-2, -1)
    if mask is not None:
        scores = scores + mask
    return merge_heads(scores.softmax(dim=-1) @ split_heads(value, heads))
