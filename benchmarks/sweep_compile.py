"""Gives every configuration that open_clip lists to the compiler of TensorRT for RTX, in four precisions.

    python -m benchmarks.sweep_compile [--only GLOB ...] [--layers 2] [--memory-gb 20] [--jobs 1] [--minutes 600]

The image tower with a zero-shot head, random weights, compiled without a GPU for all that the precision runs on. Ranges
of activations are random, one for each tensor: layers of equal scales would share constants, and plans would be smaller
than real ones. Nothing is run. It goes on where it stopped, as `benchmarks.sweep` does.
"""

import sys

from benchmarks import RESULTS
from benchmarks.sweep import BYTES, Sweep, main
from benchmarks.sweep_models import Listed

# A high estimate. In fp32 the compiler takes 3.3 times the weights of ViT-L-14 (results/rtx-builds.json), and the
# exporter holds them in several graphs.
_TIMES_THE_TOWER = 8


def peak_bytes(model: Listed) -> float:
    """The most memory that exporting and compiling one takes, but for what Python and its libraries take."""
    return BYTES * (model.parameters + _TIMES_THE_TOWER * model.vision_parameters)


COMPILED = Sweep(
    what="every configuration that open_clip lists: random weights, compiled by TensorRT for RTX; none was run",
    result=RESULTS / "sweep-rtx.json",
    module="benchmarks.sweep_compile_one",
    peak_bytes=peak_bytes,
)

if __name__ == "__main__":
    sys.exit(main(COMPILED, __doc__))
