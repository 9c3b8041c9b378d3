"""Asks the parser and the builder about a graph that need not be Calipso's. A defect of them ends the whole process."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from calipso_runtime.backends.tensorrt_rtx.bindings import trt, version
from calipso_runtime.backends.tensorrt_rtx.builder import set_capabilities, started
from calipso_runtime.backends.tensorrt_rtx.callbacks import Log
from calipso_runtime.engines.families import NAMES, TENSORRT_RTX, Capability
from calipso_runtime.engines.judge import Refusal

if TYPE_CHECKING:
    import tensorrt

# Sizes of a dynamic first axis: least, best, most. Any other dynamic axis has one size, that of a usual picture.
BATCH = (1, 2, 8)
OTHER = 224
_NO_DRIVER = "catchCudaError"


def refusals(model_path: Path, capabilities: Sequence[Capability]) -> list[Refusal]:
    """Parse and build a graph, and throw the engine away.

    Args:
        model_path: a `.onnx`, with its external data beside it.
        capabilities: compute capabilities to compile for.

    Returns:
        Why it gives no engine; nothing where it gives one.

    Raises:
        BackendUnavailableError: the compiler does not start.
        EngineBuildError: it does not compile for a capability.
    """
    log, compiler = Log(), f"{NAMES[TENSORRT_RTX]} {version()}"
    builder = started(compiler, log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(model_path)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        return [_refusal(error) for error in errors] or [Refusal(by="parser", wrong=_plain(log.take_errors()))]
    config = builder.create_builder_config()
    set_capabilities(config, capabilities, compiler)
    _add_profile(builder, network, config)
    plan = builder.build_serialized_network(network, config)
    # The parser holds weights that the network refers to: it lives as long as the build.
    del parser
    return [Refusal(by="builder", wrong=_plain(log.take_errors()))] if plan is None else []


def _add_profile(
    builder: "tensorrt.Builder", network: "tensorrt.INetworkDefinition", config: "tensorrt.IBuilderConfig"
) -> None:
    """Give every dynamic axis a range of sizes."""
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.is_shape_tensor:
            ones = [1] * (tensor.shape[0] if len(tensor.shape) else 1)
            profile.set_shape_input(tensor.name, ones, ones, ones)
        if any(size < 0 for size in tensor.shape):
            least, best, most = (
                tuple(_size(axis, size, batch) for axis, size in enumerate(tensor.shape)) for batch in BATCH
            )
            profile.set_shape(tensor.name, least, best, most)
    config.add_optimization_profile(profile)


def _size(axis: int, size: int, batch: int) -> int:
    if size >= 0:
        return size
    return batch if axis == 0 else OTHER


def _refusal(error: "tensorrt.ParserError") -> Refusal:
    wrong, nested = _plain(error.desc()), bool(error.local_function_stack())
    return Refusal(
        by="parser",
        # The text of the condition that failed.
        wrong="it is not supported" if wrong == "false" else wrong,
        name=error.node_name(),
        operator=error.node_operator(),
        place=None if nested or error.node() < 0 else error.node(),
    )


def _plain(message: str) -> str:
    """A message on one line, as the end of a sentence, without complaints about the driver that is not needed."""
    lines = (line for line in message.splitlines() if _NO_DRIVER not in line)
    return " ".join(" ".join(lines).split()).rstrip(".")
