"""ProKeR: kernel ridge regression on the example photos, with the plain classifier as what it falls back to.

Source: Bendou et al., "ProKeR: A Kernel Perspective on Few-Shot Adaptation of Large Vision-Language Models",
CVPR 2025, whose code is ybendou/ProKeR (read in a public fork, omarnust/BReg-Adapter, trainers/proker.py).
With keys S [M,D], one-hot labels Y [M,K], text T [K,D] and cosines as logits, as there:

    k(x, y) = exp(-beta (1 - x.y))            the RBF kernel of vectors of length 1
    A = (I + k(S, S) / lambda)^-1 (Y - S T')   what the text gets wrong on the photos, ridged
    logits = f T' + k(f, S) A

Here logits are s times that, so s A are the values: Tip-Adapter's graph with a dense [M,K] for the one-hot
matrix. Folded: beta is multiplied into the keys.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from calipso_export.heads.few_shot import FewShotHead, Fit, FoldedHead, Shots
from calipso_export.heads.grid import fit_on_grid, spaced
from calipso_export.progress import Progress
from calipso_runtime.errors import ShotsError

# The released grids differ by data set: together they span beta 0.5 to 5, and lambda 0.001 to 1.
BETAS = spaced(0.25, 16.0, 13)
LAMBDAS = spaced(1e-3, 10.0, 13)
# For one photo per class: chosen on average over the validation photos of the sets of benchmarks/fewshot.py.
SINGLE = {"beta": 1.0, "ridge": 0.215}
# A system of equations over all photos is solved for each point of the grid and fold: minutes at this size.
MOST_PHOTOS = 4096


class FoldedProKeR(FoldedHead):
    """Keys float32 [D,M], times beta, and dense values float32 [M,K]."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, *, beta: float) -> None:
        super().__init__()
        self.keys = nn.Parameter((beta * keys).T.contiguous(), requires_grad=False)
        self.values = nn.Parameter(values, requires_grad=False)
        self.beta = beta

    def forward(self, image: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:  # noqa: ARG002 - needs no text
        """See `FoldedHead.forward`."""
        return (image @ self.keys - self.beta).exp() @ self.values


class ProKeR(FewShotHead):
    """The regression as published.

    Args:
        keys: float32 [M,D], L2-normalised.
        values: float32 [M,K], s A above.
        beta: how fast the kernel falls.
        ridge: lambda above, which the values were solved with.
    """

    name: ClassVar[str] = "proker"
    title: ClassVar[str] = "ProKeR"
    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, *, keys: torch.Tensor, values: torch.Tensor, beta: float, ridge: float) -> None:
        super().__init__()
        self.beta, self.ridge = beta, ridge
        self.register_buffer("keys", keys)
        self.register_buffer("values", values)

    @classmethod
    def fit(cls, shots: Shots, progress: Progress) -> Fit:
        """See `FewShotHead.fit`.

        Raises:
            ShotsError: there are more photos than `MOST_PHOTOS`.
        """
        count = len(shots.photos.labels)
        if count > MOST_PHOTOS:
            message = (
                f"{cls.title} solves for all {count} photos at once, of which it takes {MOST_PHOTOS}: use another head"
            )
            raise ShotsError(message)

        def added(train: Shots, image: torch.Tensor) -> Iterator[torch.Tensor]:
            keys = train.photos.keys
            for beta in BETAS:
                near, among = kernel(image, keys, beta), kernel(keys.double(), keys.double(), beta)
                yield from (near @ solved(train, among, ridge) for ridge in LAMBDAS)

        def make(train: Shots, beta: float, ridge: float) -> ProKeR:
            return cls(keys=train.photos.keys, values=values_of(train, beta, ridge), beta=beta, ridge=ridge)

        return fit_on_grid(shots, {"beta": BETAS, "ridge": LAMBDAS}, added, make, progress, single=SINGLE)

    def forward(self, image: torch.Tensor, text: torch.Tensor, scale: float) -> torch.Tensor:  # noqa: ARG002 - text and scale are in the values
        """See `FewShotHead.forward`."""
        return kernel(image, self.keys, self.beta) @ self.values

    def fold(self, text: torch.Tensor, scale: float) -> FoldedProKeR:  # noqa: ARG002 - likewise
        """See `FewShotHead.fold`."""
        return FoldedProKeR(self.keys, self.values, beta=self.beta)

    @classmethod
    def unfold(
        cls,
        weights: Mapping[str, torch.Tensor],
        record: Mapping[str, Any],
        graph: Mapping[str, Any],  # noqa: ARG003 - the weights tell all
    ) -> "ProKeR":
        """See `FewShotHead.unfold`."""
        beta = record["beta"]
        keys = weights["keys"].T.contiguous() / beta
        return cls(keys=keys, values=weights["values"], beta=beta, ridge=record["ridge"])

    def parameters_by_name(self) -> dict[str, float]:
        """Beta and the ridge."""
        return {"beta": float(self.beta), "ridge": float(self.ridge)}


def kernel(first: torch.Tensor, second: torch.Tensor, beta: float) -> torch.Tensor:
    """`exp(-beta (1 - x.y))` of [N,D] and [M,D]: [N,M]."""
    return (-beta * (1 - first @ second.T)).exp()


def values_of(shots: Shots, beta: float, ridge: float) -> torch.Tensor:
    """S A of the photos, float32 [M,K]."""
    keys = shots.photos.keys.double()
    return solved(shots, kernel(keys, keys, beta), ridge)


def solved(shots: Shots, among: torch.Tensor, ridge: float) -> torch.Tensor:
    """The same, of the photos' kernel float64 [M,M]."""
    text = shots.text.double()
    missing = functional.one_hot(shots.photos.labels, len(text)) - shots.photos.keys.double() @ text.T
    # Symmetric, and no eigenvalue is below 1.
    system = torch.eye(len(among), dtype=torch.float64) + among / ridge
    return (shots.scale * torch.cholesky_solve(missing, torch.linalg.cholesky(system))).float()
