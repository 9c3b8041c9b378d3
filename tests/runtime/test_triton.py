"""Triton repositories: held to Triton's own schema, and the Python form to the runtime's answers on a real server."""

import contextlib
import dataclasses
import io
import json
import shutil
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_inputs import bad_pictures, no_models, two_channels
from benchmarks.triton_server import Server, TritonUnavailable, running
from click.testing import CliRunner, Result
from open_samples import write_open_bundle
from runtime_samples import LABELS, SIZE, MakeBundle, picture, tiny_manifest
from test_plans import CONTENT, HERE, record

import calipso_runtime
from calipso_runtime.bundle import open_bundle
from calipso_runtime.cli import calipso
from calipso_runtime.engines import plans
from calipso_runtime.engines.options import BatchRange
from calipso_runtime.errors import UsageError
from calipso_runtime.triton.repository import Serving, write_repository

PIXELS = {
    "input": {
        "name": "pixels",
        "channels": "rgb",
        "size": None,
        "resize": "op",
        "passes": "pillow-13",
        "dtype": "uint8",
        "layout": "NHWC",
    },
    "graph": {
        "inputs": {"pixels": {"dtype": "uint8", "shape": ["batch", "height", "width", 3]}},
        "outputs": {"logits": {"dtype": "float32", "shape": ["batch", len(LABELS)]}},
    },
}
GIVEN_HEAD = {
    **tiny_manifest().graph,
    "inputs": {**tiny_manifest().graph["inputs"], "text": {"dtype": "float32", "shape": ["classes", 5]}},
}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(calipso, ["triton", *map(str, arguments)])


def config(folder: Path) -> Any:
    """A model's configuration, read by Triton's own schema."""
    text_format = pytest.importorskip("google.protobuf.text_format")
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="needs tritonclient[grpc]")
    return text_format.Parse((folder / "config.pbtxt").read_text(), schema.ModelConfig())


def test_a_repository_has_the_graph_its_labels_and_a_version(tiny: Path, tmp_path: Path) -> None:
    result = run(tiny, "-o", tmp_path / "repository", "--name", "flowers")

    folder = tmp_path / "repository" / "flowers-onnx"
    assert result.exit_code == 0
    assert result.stdout.startswith(f"wrote {tmp_path / 'repository'}: flowers-onnx.")
    assert (folder / "1" / "model.onnx").read_bytes() == (tiny / "model.onnx").read_bytes()
    assert (folder / "labels.txt").read_text().splitlines() == list(LABELS)


def test_the_schema_reads_the_configuration_of_a_graph(tiny: Path, tmp_path: Path) -> None:
    options = ("--max-batch", 8, "--instances", 2, "--kind", "gpu", "--delay-us", 250, "--threads", 3)
    run(tiny, "-o", tmp_path / "out", "--name", "flowers", *options)

    found = config(tmp_path / "out" / "flowers-onnx")

    assert (found.name, found.backend, found.max_batch_size) == ("flowers-onnx", "onnxruntime", 8)
    assert [(each.name, list(each.dims)) for each in found.input] == [("image", [3, *SIZE])]
    assert [(each.name, list(each.dims), each.label_filename) for each in found.output] == [
        ("logits", [len(LABELS)], "labels.txt"),
        ("embedding", [5], ""),
    ]
    assert found.version_policy.latest.num_versions == 1
    assert (found.instance_group[0].count, found.instance_group[0].kind) == (2, found.instance_group[0].KIND_GPU)
    assert found.dynamic_batching.max_queue_delay_microseconds == 250
    assert [each.batch_size for each in found.model_warmup] == [1, 8]
    assert all(each.inputs["image"].zero_data for each in found.model_warmup)
    assert found.parameters["intra_op_thread_count"].string_value == "3"


def test_raw_pixels_have_any_size_and_a_warm_up_of_one(make_bundle: MakeBundle, tmp_path: Path) -> None:
    run(make_bundle(**PIXELS), "-o", tmp_path / "out", "--name", "raw")

    found = config(tmp_path / "out" / "raw-onnx")

    types = type(found.input[0]).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
    assert list(found.input[0].dims) == [-1, -1, 3]
    assert types[found.input[0].data_type].name == "TYPE_UINT8"
    assert list(found.model_warmup[0].inputs["pixels"].dims) == [*SIZE, 3]


def test_engines_are_one_model_that_takes_each_gpus_own(own: Path, tmp_path: Path) -> None:
    bundle, profiles = open_bundle(own), tuple(BatchRange.parse(text) for text in ("1", "2,8,16"))
    orin = plans.write_plan(plans.engines_folder(bundle), CONTENT, with_output(record(bundle, profiles=profiles)))
    ada = machine((8, 9))
    plans.write_plan(plans.engines_folder(bundle), CONTENT + b"!", with_output(record(bundle, ada, profiles=profiles)))

    assert run(own, "-o", tmp_path / "out", "--name", "fast").exit_code == 0

    folder = tmp_path / "out" / "fast-tensorrt"
    found = config(folder)
    assert (found.backend, found.max_batch_size) == ("tensorrt", 16)
    assert list(found.instance_group[0].profile) == ["0", "1"]
    assert dict(found.cc_model_filenames) == {"8.7": "model-8.7.plan", "8.9": "model-8.9.plan"}
    assert (folder / "1" / "model-8.7.plan").read_bytes() == orin.path.read_bytes() == CONTENT
    assert [each.name for each in found.output] == ["logits"]
    assert [each.batch_size for each in found.model_warmup] == [1, 8]
    assert config(tmp_path / "out" / "fast-onnx").backend == "onnxruntime"


def with_output(made: plans.PlanRecord) -> plans.PlanRecord:
    output = {"mode": "output", "name": "logits", "dtype": "float32", "shape": [None, len(LABELS)]}
    return dataclasses.replace(made, tensors=[*made.tensors, output])


def machine(capability: tuple[int, int], tensorrt: str = HERE.tensorrt) -> plans.Machine:
    return dataclasses.replace(HERE, capability=capability, tensorrt=tensorrt)


def test_engines_of_two_versions_of_tensorrt_are_no_model(own: Path, tmp_path: Path) -> None:
    bundle = open_bundle(own)
    plans.write_plan(plans.engines_folder(bundle), CONTENT, record(bundle))
    plans.write_plan(plans.engines_folder(bundle), CONTENT, record(bundle, machine((8, 7), "10.13.0.35")))

    result = run(own, "-o", tmp_path / "out", "--form", "tensorrt", "--name", "x")

    assert (result.exit_code, (tmp_path / "out").exists()) == (2, False)
    assert "holds engines of TensorRT 10.13.0.35, 10.3.0.30" in result.stderr


def test_plans_of_tensorrt_for_rtx_are_not_served(own: Path, tmp_path: Path) -> None:
    bundle = open_bundle(own)
    compiling = dataclasses.replace(HERE, engine="tensorrt-rtx", capability=None)
    plans.write_plan(plans.engines_folder(bundle), CONTENT, record(bundle, compiling, ((8, 6), (8, 9))))

    assert write_repository(own, Serving(name="x"), tmp_path / "out") == ("x-onnx",)


def test_a_head_that_is_an_input_is_served_by_the_runtime_alone(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle(graph=GIVEN_HEAD)

    result = run(bundle, "-o", tmp_path / "out", "--form", "onnx", "--name", "x")

    assert (result.exit_code, (tmp_path / "out").exists()) == (2, False)
    assert "this graph takes text beside image" in result.stderr
    assert write_repository(bundle, Serving(name="x"), tmp_path / "out") == ("x-python",)


@pytest.mark.parametrize("form", [(), ("--form", "onnx"), ("--form", "python")])
@pytest.mark.parametrize(("kind", "labels"), [("open", ()), ("open", ("cat", "dog")), ("embed", ())])
def test_a_bundle_that_takes_any_labels_is_not_served(
    tmp_path: Path, kind: str, labels: tuple[str, ...], form: tuple[str, ...]
) -> None:
    bundle = write_open_bundle(tmp_path / "any.calipso", kind=kind, labels=labels)

    result = run(bundle, "-o", tmp_path / "out", *form)

    assert (result.exit_code, (tmp_path / "out").exists()) == (2, False)
    assert f"error: {bundle} takes labels when it is used, and a request to Triton brings none" in result.stderr
    assert "--head-mode baked" in result.stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--form", "tensorrt"), "holds no engine of this graph that a server can load"),
        (("--name", "a/b"), "the name 'a/b'"),
        (("--name", "ok", "--max-batch", "0"), "--max-batch"),
    ],
)
def test_what_cannot_be_served_is_refused(tiny: Path, tmp_path: Path, options: tuple[str, ...], told: str) -> None:
    result = run(tiny, "-o", tmp_path / "out", *options)

    assert (result.exit_code, (tmp_path / "out").exists()) == (2, False)
    assert told in result.stderr


def test_only_a_repository_of_ours_is_replaced(tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    write_repository(tiny, Serving(name="first"), output)
    with pytest.raises(UsageError, match="exists already"):
        write_repository(tiny, Serving(name="second"), output)

    write_repository(tiny, Serving(name="second"), output, overwrite=True)

    assert sorted(path.name for path in output.iterdir()) == ["calipso.json", "second-onnx"]
    (output / "calipso.json").unlink()
    with pytest.raises(UsageError, match="is no Calipso Triton repository"):
        write_repository(tiny, Serving(name="third"), output, overwrite=True)


# A real server: the binary of nvidia-pytriton, which has the Python back end and no other.
@pytest.fixture(scope="module")
def served(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server of the tiny bundle, both forms, and of a model whose bundle is none."""
    work = tmp_path_factory.mktemp("served")
    write_repository(
        tiny, Serving(name="tiny", forms=("onnx", "python"), instances=2, threads=1, top=3), work / "repository"
    )
    other = Path(shutil.copytree(work / "repository" / "tiny-python", work / "repository" / "other-python"))
    (other / "config.pbtxt").write_text((other / "config.pbtxt").read_text().replace("tiny-python", "other-python"))
    (other / "1" / "bundle" / "manifest.json").write_text('{"name": "other"}')
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(running(work / "repository", "tiny-python", work / "server"))
        except TritonUnavailable as reason:
            pytest.skip(str(reason))
        yield server


def encoded(seed: int) -> bytes:
    stream = io.BytesIO()
    picture("RGB", 30 + seed, 40, seed).save(stream, "PNG" if seed % 2 else "JPEG")
    return stream.getvalue()


def ask(client: Any, module: Any, pictures: list[bytes]) -> dict[str, Any]:
    tensor = module.InferInput("picture", [len(pictures), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[each] for each in pictures], np.object_))
    result = client.infer("tiny-python", [tensor])
    return {name: result.as_numpy(name) for name in ("label", "probability", "logit", "unknown")}


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_real_server_answers_like_the_runtime_under_load(served: Server, tiny: Path, protocol: str) -> None:
    module = pytest.importorskip(f"tritonclient.{protocol}", reason="needs tritonclient[http,grpc]")
    port = served.http if protocol == "http" else served.grpc
    requests = [[encoded(seed + place) for place in range(1 + seed % 3)] for seed in range(60)]

    def answer(pictures: list[bytes]) -> dict[str, Any]:
        with module.InferenceServerClient(f"127.0.0.1:{port}") as client:
            return ask(client, module, pictures)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(answer, requests))

    with calipso_runtime.load(tiny, threads=1) as classifier:
        for pictures, found in zip(requests, answers, strict=True):
            for place, expected in enumerate(classifier.classify(pictures, top=3)):
                assert [label.decode() for label in found["label"][place]] == [score.label for score in expected]
                np.testing.assert_allclose(found["logit"][place], [score.logit for score in expected], rtol=1e-5)
                np.testing.assert_allclose(
                    found["probability"][place], [score.probability for score in expected], rtol=1e-5
                )
                assert found["unknown"][place].tolist() == [expected.is_unknown]


@pytest.mark.slow
def test_a_picture_that_cannot_be_read_fails_its_own_request_alone(served: Server, tiny: Path) -> None:
    module = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")
    utils = pytest.importorskip("tritonclient.utils")
    good = encoded(1)
    contents = [[good], [b""], [good, good[: len(good) // 2]], [good]] * 5

    def answer(pictures: list[bytes]) -> object:
        with module.InferenceServerClient(f"127.0.0.1:{served.http}") as client:
            try:
                return ask(client, module, pictures)["label"][0, 0].decode()
            except utils.InferenceServerException as error:
                return error.message()

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(answer, contents))

    with calipso_runtime.load(tiny) as classifier:
        label = classifier.classify(good).label
    for place in range(0, len(answers), 4):
        assert [answers[place], answers[place + 3]] == [label, label]
        assert "picture 0: " in str(answers[place + 1])
        assert "cannot be used as a picture" in str(answers[place + 1])
        assert "picture 1: " in str(answers[place + 2])


@pytest.mark.slow
def test_each_bad_picture_is_told_by_a_real_server_and_the_next_is_answered(served: Server, tiny: Path) -> None:
    module = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")
    utils = pytest.importorskip("tritonclient.utils")

    with module.InferenceServerClient(f"127.0.0.1:{served.http}") as client, calipso_runtime.load(tiny) as classifier:
        for name, (content, word) in bad_pictures().items():
            with pytest.raises(utils.InferenceServerException) as caught:
                ask(client, module, [content])

            assert "picture 0: " in caught.value.message(), name
            assert word in caught.value.message(), name
            good = two_channels()
            assert ask(client, module, [good])["label"][0, 0].decode() == classifier.classify(good).label


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 20, 20, 2), (1, 0, 20, 3), (0, 20, 20, 3)])
def test_pixels_instead_of_a_file_are_refused_by_a_real_server(served: Server, shape: tuple[int, ...]) -> None:
    module = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")
    utils = pytest.importorskip("tritonclient.utils")
    tensor = module.InferInput("picture", list(shape), "UINT8")
    tensor.set_data_from_numpy(np.zeros(shape, np.uint8))

    with (
        module.InferenceServerClient(f"127.0.0.1:{served.http}") as client,
        pytest.raises(utils.InferenceServerException, match="picture"),
    ):
        client.infer("tiny-python", [tensor])


@pytest.mark.slow
def test_a_real_server_says_why_what_is_no_bundle_is_not_served(served: Server) -> None:
    told = served.log.read_text()

    assert "failed to load 'other-python'" in told
    assert "manifest.json is not a Calipso manifest: it has no schema_version" in told


def test_no_repository_is_written_of_what_is_no_calipso_file(tmp_path: Path) -> None:
    for path, said in no_models(tmp_path / "models").items():
        result = run(path, "-o", tmp_path / "out")

        assert (result.exit_code, (tmp_path / "out").exists()) == (1, False)
        assert result.stderr.startswith(f"error: {path}")
        assert said in result.stderr


@pytest.mark.slow
def test_a_real_server_takes_the_graphs_configuration_and_misses_its_back_end_alone(
    served: Server,
) -> None:
    told = served.log.read_text()

    reason = "unable to find backend library for backend 'onnxruntime'"
    assert f"failed to load 'tiny-onnx' version 1: Invalid argument: {reason}" in told
    assert "successfully loaded 'tiny-python'" in told


@pytest.mark.slow
def test_requests_that_come_together_are_computed_together(served: Server) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{served.http}/v2/models/tiny-python/stats", timeout=10) as reply:
        told = json.load(reply)["model_stats"][0]

    assert 0 < told["execution_count"] < told["inference_count"]
