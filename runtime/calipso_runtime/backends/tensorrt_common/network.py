"""Steps of a build that both compilers share: from the graph to a strongly typed network and its configuration."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from calipso_runtime.backends import TensorInfo
from calipso_runtime.backends.tensorrt_common.log import LogLines
from calipso_runtime.engines.options import BuildOptions
from calipso_runtime.errors import EngineBuildError
from calipso_runtime.manifest import INPUTS

if TYPE_CHECKING:
    import tensorrt

_MIB = 1 << 20
# By the name of the enum's member: its values are not the same in every version. bf16 and fp8 have no type in numpy;
# no bundle has them at its edge.
_DTYPES: Mapping[str, str] = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What is built, and by which compiler.

    Attributes:
        compiler: its name and version: "TensorRT 11.4.0.106".
        model_path: the graph, with its external data beside it.
        options: of the build.
        log: what the builder and the parser write to.
    """

    compiler: str
    model_path: Path
    options: BuildOptions
    log: LogLines


def parse(
    trt: ModuleType, builder: "tensorrt.Builder", job: Job
) -> "tuple[tensorrt.INetworkDefinition, tensorrt.OnnxParser]":
    """Read a graph into a strongly typed network.

    Returns:
        The network, and the parser: it holds weights that the network refers to, and has to live as long as the build.

    Raises:
        EngineBuildError: the compiler refuses a node.
    """
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser: tensorrt.OnnxParser = trt.OnnxParser(network, job.log)
    if not parser.parse_from_file(str(job.model_path)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        said = "; ".join(f"node {error.node_name()} ({error.node_operator()}): {error.desc()}" for error in errors)
        message = (
            f"{job.compiler} cannot read {job.model_path}: {said or job.log.take_errors()}. "
            "`calipso lint` says which rules of which version it breaks"
        )
        raise EngineBuildError(message)
    return network, parser


def configure(trt: ModuleType, config: "tensorrt.IBuilderConfig", options: BuildOptions) -> None:
    """Set the options that mean the same to both compilers."""
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib * _MIB)
    # On by default, even where the graph says fp32.
    (config.set_flag if options.tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
    if options.weight_streaming:
        config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)


def add_profiles(
    builder: "tensorrt.Builder", network: "tensorrt.INetworkDefinition", config: "tensorrt.IBuilderConfig", job: Job
) -> None:
    """Add an optimisation profile for each range of batches.

    Raises:
        EngineBuildError: the graph does not have one input, or the compiler refuses a profile.
    """
    image = network.get_input(0)
    if network.num_inputs != 1 or image.name not in INPUTS:
        names = ", ".join(network.get_input(index).name for index in range(network.num_inputs))
        message = f"{job.model_path} takes {names}: expected one input, {' or '.join(INPUTS)}. Export it again"
        raise EngineBuildError(message)
    rest = tuple(image.shape)[1:]
    for each in job.options.profiles:
        profile = builder.create_optimization_profile()
        profile.set_shape(image.name, min=(each.least, *rest), opt=(each.best, *rest), max=(each.most, *rest))
        if config.add_optimization_profile(profile) < 0:
            message = f"{job.compiler} refuses the batches {each}: {job.log.take_errors()}"
            raise EngineBuildError(message)


def edges(network: "tensorrt.INetworkDefinition") -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
    """Return the inputs and the outputs of a network: of a strongly typed one, those of its engine too."""
    inputs = (network.get_input(place) for place in range(network.num_inputs))
    outputs = (network.get_output(place) for place in range(network.num_outputs))
    return tuple(map(_info, inputs)), tuple(map(_info, outputs))


def dtype_name(kind: str) -> str:
    """Return numpy's name of a type, by the name of the compiler's."""
    return _DTYPES.get(kind, kind.lower())


def _info(tensor: "tensorrt.ITensor") -> TensorInfo:
    shape = tuple(size if size >= 0 else None for size in tensor.shape)
    return TensorInfo(name=tensor.name, shape=shape, dtype=dtype_name(tensor.dtype.name))
