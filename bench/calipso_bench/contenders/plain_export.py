"""The naive ONNX export: what a user gets from torch.onnx.export of the eager module, unchanged."""

import logging
import warnings
from pathlib import Path

import torch

from calipso_bench.contenders import ContenderUnavailable, first_line
from calipso_bench.contenders.eager_module import EagerModel

OPSET = 18
OUTPUTS = ("logits", "embedding")
# A batch of 1 would be baked into the graph as a constant.
_EXAMPLE_BATCH = 2


def plain_export(model: EagerModel, path: Path, *, size: tuple[int, int]) -> Path:
    """Export the eager module with a dynamic batch.

    Args:
        model: the eager model.
        path: the `.onnx` to write; its weights go beside it, as the exporter has it by default.
        size: height and width of the input.

    Raises:
        ContenderUnavailable: the exporter fails.
    """
    example = torch.zeros(_EXAMPLE_BATCH, 3, *size)
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # torch's exporter warns about its own internals; what it made is verified before it is timed.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model.module,
                (example,),
                path,
                dynamo=True,
                opset_version=OPSET,
                input_names=["image"],
                output_names=list(OUTPUTS),
                dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
                verbose=False,
            )
    except RuntimeError as error:
        path.unlink(missing_ok=True)
        message = f"torch.onnx.export fails on this model: {first_line(error)}"
        raise ContenderUnavailable(message) from error
    finally:
        logging.disable(before)
    return path
