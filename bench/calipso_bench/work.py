"""How much there is to compute: operations and weights of the eager model, as torch counts them."""

from collections.abc import Mapping
from typing import Any

from calipso_bench.contenders import ContenderUnavailable
from calipso_bench.subject import Subject

COUNTED_BY = "torch.utils.flop_counter"
# Of the stages whose work is counted, the whole classifier first.
FLOPS = {"classify": "flops_per_image", "encode": "encoder_flops_per_image"}


def count(subject: Subject) -> dict[str, Any] | None:
    """Count the eager encoder and the whole eager classifier; None without torch or the weights.

    A multiplication with its addition counts as two operations. What is counted is the eager model:
    a contender that gets by with fewer operations still has these as its work.
    """
    try:
        model = subject.eager()
    except ContenderUnavailable:
        return None
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from calipso_bench.contenders.eager_module import Encoder

    image = torch.zeros(1, 3, *subject.preprocess.size)

    def flops(module: torch.nn.Module) -> int:
        with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            module(image)
        return int(counter.get_total_flops())

    fast_path = torch.backends.mha.get_fastpath_enabled()
    # Its one fused operator is not counted at all; the same products one by one are.
    torch.backends.mha.set_fastpath_enabled(value=False)
    try:
        total, encoder = flops(model.module), flops(Encoder(model.module.visual))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    weights = [*model.module.visual.state_dict().values(), *_head_weights(model.module)]
    return {
        "flops_per_image": total,
        "encoder_flops_per_image": encoder,
        "weight_bytes": sum(value.numel() * value.element_size() for value in weights),
        "counted_by": COUNTED_BY,
    }


def achieved_gflops(work: Mapping[str, Any], cell: Mapping[str, Any], median_ms: float) -> float:
    """GFLOP/s of a cell whose stage is in `FLOPS`."""
    return float(work[FLOPS[cell["stage"]]] * cell["batch"] / (median_ms / 1e3) / 1e9)


def _head_weights(module: Any) -> list[Any]:
    """Text features and keys; the one-hot values hold nothing that the keys' order does not."""
    return [value for name, value in module.named_buffers(recurse=False) if name in ("text", "keys")]
