"""A stand-in for the module tensorrt that computes: its engines are ONNX graphs, run by ONNX Runtime.

It works on the device memory and the streams of the stand-in for libcuda (`cuda.c`), where nothing happens
before somebody waits. Where TensorRT leaves undefined what happens, it counts a violation: a graph whose context was
changed after it was captured, memory to compute in that is missing or too small, an engine that goes while no context
of CUDA is current. Its names and signatures are those that the code uses; that the real bindings have them
too is what `test_tensorrt_bindings_*.py` is for. It says nothing about speed, kernels or rounding.

`become_rtx` makes it a stand-in for TensorRT for RTX: its contexts take a runtime configuration, "compile" a kernel for
every batch that they have not run before, and share these through the cache of the configuration.
"""

import ctypes
import enum
import functools
import json
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

MAGIC = b"a plan of the stand-in for TensorRT\n"
_TYPES = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(uint8)": "UINT8"}
_NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "UINT8": np.uint8}
_PRODUCTS = ("MatMul", "Gemm", "Conv")
_SHOWN = {1: "Float", 10: "Half", 16: "BFloat16", 3: "Int8"}


__version__ = "10.3.0"
is_rtx = False


def become_rtx(version: str = "1.7.1") -> None:
    """Stand for TensorRT for RTX from now on."""
    global __version__, is_rtx
    __version__, is_rtx = version, True


class Faults:
    """What goes wrong next: set by tests.

    Attributes:
        failing: names of calls that fail, as TensorRT fails: None or False, and a line in the log.
        distort: factor that every answer is multiplied with.
        layers: layer information instead of what follows from the graph.
        steps: of the build's first phase, each of `step_s` seconds.
        destroyed: what was let go of, in order.
        compiled: batches that TensorRT for RTX compiled kernels for, in order.
    """

    def __init__(self) -> None:
        self.failing: set[str] = set()
        self.distort = 1.0
        self.layers: list[object] | None = None
        self.steps = 3
        self.step_s = 0.0
        self.destroyed: list[str] = []
        self.flags: set[str] = set()
        self.dla_cores = 0
        self.executed = 0
        self.builds = 0
        self.context_s = 0.0
        self.compiled: list[int] = []


faults = Faults()
_host_function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_cuda: ctypes.CDLL | None = None


def attach(cuda: ctypes.CDLL) -> None:
    """Work on the memory and the streams of a loaded stand-in for libcuda."""
    global _cuda  # noqa: PLW0603 - a module is loaded for each test
    _cuda = cuda
    cuda.cuLaunchHostFunc.argtypes = (ctypes.c_void_p, _host_function, ctypes.c_void_p)
    cuda.standin_memory.restype = ctypes.c_void_p
    cuda.standin_memory.argtypes = (ctypes.c_uint64, ctypes.c_size_t)
    cuda.standin_is_capturing.argtypes = (ctypes.c_void_p,)


def on_device(address: int, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Memory of the device as an array."""
    size_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = _cuda.standin_memory(address, size_bytes)
    assert memory, f"{address:#x} is no memory of {size_bytes} bytes on the device"
    return np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(memory)).view(dtype).reshape(shape)


_ENUMS = {
    "NetworkDefinitionCreationFlag": ("EXPLICIT_BATCH", "STRONGLY_TYPED"),
    "BuilderFlag": (
        "FP16",
        "TF32",
        "VERSION_COMPATIBLE",
        "EXCLUDE_LEAN_RUNTIME",
        "STRIP_PLAN",
        "REFIT_IDENTICAL",
        "WEIGHT_STREAMING",
        "GPU_FALLBACK",
    ),
    "MemoryPoolType": ("WORKSPACE",),
    "ProfilingVerbosity": ("LAYER_NAMES_ONLY", "NONE", "DETAILED"),
    "HardwareCompatibilityLevel": ("NONE", "AMPERE_PLUS"),
    "DeviceType": ("GPU", "DLA"),
    "TensorIOMode": ("NONE", "INPUT", "OUTPUT"),
    "DataType": ("FLOAT", "HALF", "INT8", "INT32", "BOOL", "UINT8", "FP8", "BF16", "INT64", "INT4"),
    "LayerInformationFormat": ("ONELINE", "JSON"),
    "ExecutionContextAllocationStrategy": ("STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED"),
    "DynamicShapesKernelSpecializationStrategy": ("LAZY", "EAGER", "NONE"),
    "CudaGraphStrategy": ("DISABLED", "WHOLE_GRAPH_CAPTURE"),
    "ComputeCapability": ("NONE", "SM75", "SM80", "SM86", "SM89", "SM120"),
}

for _name, _members in _ENUMS.items():
    globals()[_name] = enum.IntEnum(_name, _members, start=0)


class OnDevice:
    """What has memory of the device, or a say in it: it goes while the device's context is current."""

    def __del__(self) -> None:
        faults.destroyed.append(type(self).__name__.lower())
        if not _cuda.standin_is_current():
            _cuda.standin_violate()


class ILogger:
    class Severity(enum.Enum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self) -> None: ...


def refuses(call: str, logger: ILogger) -> bool:
    if call in faults.failing:
        logger.log(ILogger.Severity.ERROR, f"the stand-in was told that {call} fails")  # noqa: G004 - no logging
    return call in faults.failing


class IProgressMonitor:
    def __init__(self) -> None: ...


class Config:
    def __init__(self) -> None:
        self.flags, self.profiles, self.cache, self.progress_monitor = {"TF32"}, [], None, None
        self.workspace, self.default_device_type, self.DLA_core = None, None, -1
        self.hardware_compatibility_level = None
        self.num_compute_capabilities, self.capabilities = 0, []

    def set_compute_capability(self, capability: enum.Enum, index: int) -> bool:
        self.capabilities.append(capability.name)
        return True

    def set_flag(self, flag: enum.Enum) -> None:
        self.flags.add(flag.name)

    def clear_flag(self, flag: enum.Enum) -> None:
        self.flags.discard(flag.name)

    def set_memory_pool_limit(self, pool: enum.Enum, pool_size: int) -> None:
        self.workspace = pool_size

    def create_timing_cache(self, serialized_timing_cache: bytes) -> "Cache | None":
        content = bytes(serialized_timing_cache)
        return None if content.startswith(b"damaged") else Cache(content)

    def set_timing_cache(self, cache: "Cache", ignore_mismatch: bool) -> bool:
        if cache.content.strip(b"t") and not ignore_mismatch:
            return False
        self.cache = cache
        return True

    def add_optimization_profile(self, profile: "Profile") -> int:
        self.profiles.append(profile.sizes)
        return len(self.profiles) - 1


class Cache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content


class Profile:
    def set_shape(self, input: str, min: tuple, opt: tuple, max: tuple) -> None:
        self.sizes = [list(min), list(opt), list(max)]


class Tensor:
    def __init__(self, node: onnxruntime.NodeArg) -> None:
        self.name, self.shape = node.name, tuple(each if isinstance(each, int) else -1 for each in node.shape)
        self.dtype = DataType[_TYPES[node.type]]


class Network:
    def __init__(self, flags: int) -> None:
        assert flags == 1 << int(NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        self.content, self.num_inputs = b"", 0

    def get_input(self, index: int) -> Tensor:
        return Tensor(session_of(self.content).get_inputs()[index])

    @property
    def num_outputs(self) -> int:
        return len(session_of(self.content).get_outputs())

    def get_output(self, index: int) -> Tensor:
        return Tensor(session_of(self.content).get_outputs()[index])


class ParserError:
    def __init__(self, text: str) -> None:
        self.text = text

    def desc(self) -> str:
        return self.text

    def node_name(self) -> str:
        return "tower/Strange"

    def node_operator(self) -> str:
        return "Strange"


class OnnxParser:
    def __init__(self, network: Network, logger: ILogger) -> None:
        self.network, self.logger, self.errors = network, logger, []

    @property
    def num_errors(self) -> int:
        return len(self.errors)

    def get_error(self, index: int) -> ParserError:
        return self.errors[index]

    def parse_from_file(self, model: str) -> bool:
        if "parse" in faults.failing:
            self.errors.append(ParserError("no importer for Strange"))
            return False
        self.network.content = Path(model).read_bytes()
        self.network.num_inputs = len(session_of(self.network.content).get_inputs())
        return True


class Builder(OnDevice):
    def __new__(cls, logger: ILogger) -> "Builder":
        if refuses("start", logger):
            message = "pybind11::init(): factory function returned nullptr"
            raise TypeError(message)
        return super().__new__(cls)

    def __init__(self, logger: ILogger) -> None:
        self.logger, self.num_DLA_cores = logger, faults.dla_cores

    def create_network(self, flags: int = 0) -> Network:
        return Network(flags)

    def create_builder_config(self) -> Config:
        return Config()

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        faults.flags = set(config.flags)
        monitor = config.progress_monitor
        monitor.phase_start("Building Engine", None, faults.steps)
        for step in range(faults.steps):
            monitor.phase_start("Timing Kernels", "Building Engine", 1)
            monitor.phase_finish("Timing Kernels")
            time.sleep(faults.step_s)
            if config.cache is not None:
                config.cache.content += b"t"
            if not monitor.step_complete("Building Engine", step):
                return None
        monitor.phase_finish("Building Engine")
        if refuses("build", self.logger) or refuses("allocating memory", self.logger):
            return None
        self.logger.log(ILogger.Severity.WARNING, "a warning of the builder")
        is_stripped = "STRIP_PLAN" in config.flags
        content = b"" if is_stripped else network.content
        return plan_of(content, config.profiles, is_stripped=is_stripped)


def plan_of(content: bytes, profiles: list, *, is_stripped: bool = False) -> bytes:
    """A plan: of each profile the smallest, the best and the largest shape."""
    head = {"profiles": profiles, "version": __version__, "is_stripped": is_stripped, "number": faults.builds}
    faults.builds += 1
    head["bytes"] = len(content)
    return MAGIC + json.dumps(head).encode() + b"\n" + content


class Runtime:
    def __new__(cls, logger: ILogger) -> "Runtime":
        if refuses("start", logger):
            message = "pybind11::init(): factory function returned nullptr"
            raise TypeError(message)
        return super().__new__(cls)

    def __init__(self, logger: ILogger) -> None:
        self.logger, self.DLA_core, self.engine_host_code_allowed = logger, -1, False
        self.name = "runtime"

    def __del__(self) -> None:
        faults.destroyed.append(self.name)

    def load_runtime(self, path: str) -> "Runtime | None":
        if refuses("load_runtime", self.logger):
            return None
        loaded = Runtime(self.logger)
        loaded.name = "lean runtime"
        return loaded

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> "Engine | None":
        content = bytes(serialized_engine)
        if refuses("deserialize", self.logger) or not content.startswith(MAGIC):
            self.logger.log(ILogger.Severity.ERROR, "Serialization assertion magicTagRead == kMAGIC_TAG failed.")
            return None
        head, _, graph = content[len(MAGIC) :].partition(b"\n")
        engine = Engine(json.loads(head), graph)
        engine.logger = self.logger
        return engine


class Engine(OnDevice):
    def __init__(self, head: dict, content: bytes) -> None:
        self.head, self.content = head, content
        self.weight_streaming_budget_v2 = None
        self.asked = threading.Lock()

    @property
    def device_memory_size_v2(self) -> int:
        return max(map(self.get_device_memory_size_for_profile_v2, range(self.num_optimization_profiles)))

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return 256 * self.head["profiles"][profile_index][2][0]

    @property
    def tensors(self) -> list[tuple[str, onnxruntime.NodeArg]]:
        opened = session_of(self.content)
        return [("INPUT", each) for each in opened.get_inputs()] + [("OUTPUT", each) for each in opened.get_outputs()]

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.head["profiles"])

    def _node(self, name: str) -> tuple[str, onnxruntime.NodeArg]:
        return next(each for each in self.tensors if each[1].name == name)

    def get_weight_streaming_automatic_budget(self) -> int:
        return 1 << 20

    def get_tensor_name(self, index: int) -> str:
        return self.tensors[index][1].name

    def get_tensor_mode(self, name: str) -> enum.Enum:
        return TensorIOMode[self._node(name)[0]]

    def get_tensor_dtype(self, name: str) -> enum.Enum:
        return DataType[_TYPES[self._node(name)[1].type]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(each if isinstance(each, int) else -1 for each in self._node(name)[1].shape)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[list[int]]:
        return self.head["profiles"][profile_index]

    def create_runtime_config(self) -> "RuntimeConfig | None":
        return None if refuses("runtime config", self.logger) else RuntimeConfig(self.logger)

    def create_execution_context(self, how: "enum.Enum | RuntimeConfig") -> "Context | None":
        config = how if is_rtx else None
        strategy = config.strategy if is_rtx else how
        assert strategy.name == "USER_MANAGED"
        # One thread at a time: whoever comes meanwhile breaks TensorRT's rule.
        if not self.asked.acquire(blocking=False):
            _cuda.standin_violate()
            return None
        time.sleep(faults.context_s)
        self.asked.release()
        if "context memory" in faults.failing:
            self.logger.log(ILogger.Severity.ERROR, "Error Code 2: OutOfMemory (Requested size was 5 bytes.)")
            return None
        return None if "context" in faults.failing else Context(self, config)

    def create_engine_inspector(self) -> "Inspector":
        return Inspector(self)


class RuntimeConfig(OnDevice):
    def __init__(self, logger: ILogger) -> None:
        self.logger, self.strategy, self.cache = logger, ExecutionContextAllocationStrategy.STATIC, None
        self.dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY
        self.cuda_graph_strategy = CudaGraphStrategy.WHOLE_GRAPH_CAPTURE

    def set_execution_context_allocation_strategy(self, strategy: enum.Enum) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> "RuntimeCache":
        return RuntimeCache(self.logger)

    def set_runtime_cache(self, cache: "RuntimeCache") -> bool:
        self.cache = cache
        return True


class RuntimeCache(OnDevice):
    def __init__(self, logger: ILogger) -> None:
        self.logger, self.kernels = logger, set()

    def deserialize(self, blob: bytes) -> bool:
        if refuses("deserialize cache", self.logger):
            return False
        version, _, kernels = bytes(blob).partition(b"\n")
        assert version.decode() == __version__, "a cache that is damaged never comes here"
        self.kernels.update(map(tuple, json.loads(kernels)))
        return True

    def serialize(self) -> bytes:
        return __version__.encode() + b"\n" + json.dumps(sorted(self.kernels)).encode()


class Inspector:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def get_engine_information(self, format: enum.Enum) -> str:
        return json.dumps({"Layers": faults.layers if faults.layers is not None else layers_of(self.engine.content)})


class Context(OnDevice):
    def __init__(self, engine: Engine, config: RuntimeConfig | None = None) -> None:
        self.engine, self.addresses, self.shape, self.profile = engine, {}, None, 0
        self.config = config
        self.scratch = (0, 0)
        # Of everything that was ever set.
        self.changes = 0
        self.kept: dict[tuple, object] = {}

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self.profile, self.shape = profile_index, None
        self.changes += 1
        return "profile" not in faults.failing

    def set_device_memory(self, memory: int, size: int) -> None:
        self.scratch = (memory, size)
        self.changes += 1

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self.engine.head["profiles"][self.profile]
        self.shape = tuple(shape)
        self.changes += 1
        return all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if memory % 256:
            self.engine.logger.log(ILogger.Severity.ERROR, f"the address of {name} is not aligned")  # noqa: G004 - no logging
            return False
        self.addresses[name] = memory
        self.changes += 1
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        if "execute" in faults.failing:
            return False
        if "execution memory" in faults.failing:
            self.engine.logger.log(ILogger.Severity.ERROR, "Cuda Runtime (out of memory)")
            return False
        captured = self.changes if _cuda.standin_is_capturing(stream_handle) else None
        self._compile(is_captured=captured is not None)
        key = (self.shape, captured, *sorted(self.addresses.items()))
        if key not in self.kept:
            work, me = self._work(self.shape, dict(self.addresses)), weakref.ref(self)
            self.kept[key] = _host_function(functools.partial(_checked, work, me, self.scratch, captured))
            # What is queued may still call it when this context is gone, which is what is to be seen.
            _queued.append(self.kept[key])
        return _cuda.cuLaunchHostFunc(stream_handle, self.kept[key], None) == 0

    def is_stream_capturable(self, stream: int) -> bool:
        return "capturable" not in faults.failing

    def _compile(self, *, is_captured: bool) -> None:
        """Kernels for this batch, unless the cache has them; that cannot be done while a graph is captured."""
        if self.config is None:
            return
        # With other strategies kernels change later, and graphs are captured twice.
        strategies = self.config.dynamic_shapes_kernel_specialization_strategy, self.config.cuda_graph_strategy
        if [each.name for each in strategies] != ["EAGER", "DISABLED"]:
            _cuda.standin_violate()
        kernels, key = self.config.cache.kernels, (self.profile, self.shape[0])
        if key not in kernels:
            if is_captured:
                _cuda.standin_violate()
            kernels.add(key)
            faults.compiled.append(self.shape[0])

    def _work(self, shape: tuple[int, ...], addresses: dict[str, int]) -> object:
        opened, content = session_of(self.engine.content), self.engine.tensors

        def work(_data: object) -> None:
            faults.executed += 1
            dtypes = {node.name: _NUMPY[_TYPES[node.type]] for _, node in content}
            image = on_device(addresses["image"], shape, dtypes["image"]).copy()
            names = [node.name for mode, node in content if mode == "OUTPUT"]
            for name, value in zip(names, opened.run(names, {"image": image}), strict=True):
                on_device(addresses[name], value.shape, dtypes[name])[...] = value * dtypes[name](faults.distort)

        return work


_queued: list[object] = []


def _checked(
    work: Callable[[object], None],
    owner: "weakref.ref[Context]",
    scratch: tuple[int, int],
    captured: int | None,
    data: object,
) -> None:
    """Work of a context, after what TensorRT expects of whoever asked for it."""
    context = owner()
    if context is None or captured not in (None, context.changes):
        _cuda.standin_violate()
        return
    needed = context.engine.get_device_memory_size_for_profile_v2(context.profile)
    if scratch[1] < needed or not _cuda.standin_memory(*scratch):
        _cuda.standin_violate()
        return
    work(data)


class Refitter:
    def __init__(self, engine: Engine, logger: ILogger) -> None:
        self.engine, self.logger = engine, logger

    def refit_cuda_engine(self) -> bool:
        return not refuses("refit", self.logger)

    def get_missing_weights(self) -> list[str]:
        return ["tower.weight"] if "missing" in faults.failing else []


class OnnxParserRefitter:
    def __init__(self, refitter: Refitter, logger: ILogger) -> None:
        self.refitter, self.num_errors = refitter, 0

    def refit_from_file(self, model: str) -> bool:
        self.refitter.engine.content = Path(model).read_bytes()
        return True


ICudaEngine, IExecutionContext, INetworkDefinition, IBuilderConfig = Engine, Context, Network, Config
ITimingCache, IRuntimeConfig, IRuntimeCache = Cache, RuntimeConfig, RuntimeCache


_sessions: dict[int, onnxruntime.InferenceSession] = {}


def session_of(content: bytes) -> onnxruntime.InferenceSession:
    """One session for each graph."""
    key = hash(content)
    if key not in _sessions:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        _sessions[key] = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return _sessions[key]


def layers_of(content: bytes) -> list[dict]:
    """A layer for each node, of the type that the graph gives it."""
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(content))
    kinds = {each.name: each.type.tensor_type.elem_type for each in (*model.graph.value_info, *model.graph.output)}
    return [
        {
            "Name": f"{node.name or node.output[0]}_myl0_{place}",
            "LayerType": "gemm" if node.op_type in _PRODUCTS else "kgen",
            "Outputs": [{"Name": node.output[0], "Format/Datatype": _SHOWN.get(kinds.get(node.output[0], 0), "Int32")}],
            "TacticName": "sm90_xmma_gemm" if node.op_type in _PRODUCTS else f"__myl_{node.op_type}",
            "Metadata": f"[ONNX Layer: {node.name or node.output[0]}]",
        }
        for place, node in enumerate(model.graph.node)
    ]
