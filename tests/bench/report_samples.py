"""A results document as `calipso bench` writes it, made up, for the tests of what reads it."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

STAGES = ("encode", "classify", "end-to-end")
# Medians of a picture in ms on one thread; and how far off each contender's answers are.
SPEEDS = {"bundle/ort": 96.0, "eager": 160.0, "compile": 155.0, "ort-plain": 118.0, "openvino": 114.0}
ERRORS = {"bundle/ort": 2e-6, "eager": 0.0, "compile": 9e-7, "ort-plain": 1.6e-6, "openvino": 4e-6}
_COLD = {"bundle/ort": (0.15, 0.5, 0.1, 460), "eager": (4.6, 2.4, 0.3, 1520), "ort-plain": (0.15, 1.5, 0.2, 680)}
_MIB = 2**20


def document(
    *,
    seed: int = 0,
    factors: Mapping[str, float] | None = None,
    scenarios: Sequence[str] = ("latency", "throughput"),
    batches: Sequence[int] = (1, 8),
    threads: Sequence[int] = (1, 2),
    stages: Sequence[str] = STAGES,
    count: int = 60,
    noise: float = 0.03,
    **changes: Any,
) -> dict[str, Any]:
    """Made-up results.

    Args:
        seed: of the samples.
        factors: how much slower than usual a contender is.
        scenarios: of the cells.
        batches: of the cells.
        threads: of the cells.
        stages: of the cells.
        count: of samples.
        noise: coefficient of variation of the samples.
        changes: replaced keys of the document.
    """
    generator = np.random.default_rng(seed)
    factors = factors or {}

    def samples(name: str, stage: str, batch: int, used: int) -> list[float]:
        per_picture = SPEEDS[name] * {"encode": 0.93, "classify": 1.0, "end-to-end": 1.08}[stage]
        median = factors.get(name, 1.0) * per_picture * batch**0.93 / used**0.8
        return [float(each) for each in median * (1 + noise * generator.gamma(4, 0.5, count))]

    cells = [
        {
            "scenario": scenario,
            "stage": stage,
            "batch": batch,
            "threads": used,
            "stopped": "interval",
            "rounds": 6,
            "rechecked": count * len(SPEEDS),
            "samples_ms": {name: samples(name, stage, batch, used) for name in SPEEDS},
            "device_ms": None,
            "environment_after": None,
        }
        for scenario in scenarios
        for used in threads
        for batch in batches
        for stage in stages
    ]
    return copy.deepcopy({**_about(), "cells": cells, "processes": _processes(factors, threads[0]), **changes})


def without(found: dict[str, Any], *names: str) -> dict[str, Any]:
    """The document without some contenders' samples."""
    changed = copy.deepcopy(found)
    for cell in changed["cells"]:
        cell["samples_ms"] = {name: own for name, own in cell["samples_ms"].items() if name not in names}
    changed["processes"] = [each for each in changed["processes"] if each["contender"] not in names]
    return changed


def _processes(factors: Mapping[str, float], threads: int) -> list[dict[str, Any]]:
    found = []
    for name, (import_s, load_s, answer_s, mib) in _COLD.items():
        own = [factors.get(name, 1.0) * (1 + 0.02 * index) for index in range(5)]
        samples = [
            {
                "import_s": factor * import_s,
                "load_s": factor * load_s,
                "first_answer_s": factor * (import_s + load_s + answer_s),
                "total_s": factor * (import_s + load_s + answer_s) + 0.02,
                "steady_ms": SPEEDS[name],
                "peak_rss_bytes": mib * _MIB,
                "peak_private_bytes": None,
                "weights_bytes": 372 * _MIB,
            }
            for factor in own
        ]
        found.append({"contender": name, "threads": threads, "samples": samples})
    return found


def _about() -> dict[str, Any]:
    return {
        "schema_version": 1,
        "kind": "calipso-bench",
        "calipso": "0.1.0",
        "commit": "0123abc",
        "bundle": {
            "name": "ViT-B-32.calipso",
            "sha256": "ab" * 32,
            "model": "ViT-B-32",
            "weights": "random",
            "classes": 1000,
            "keys": 16000,
            "calip": True,
            "tip_adapter": True,
            "precision": "fp32",
            "input": [3, 224, 224],
            "file_bytes": 386_000_000,
        },
        "config": {
            "against": ["eager", "compile", "ort-plain", "openvino"],
            "batches": [1, 8],
            "threads": [1, 2],
            "stages": list(STAGES),
            "scenarios": ["latency", "throughput"],
            "seconds": 10.0,
            "seed": 0,
        },
        "pictures": {"source": "made-up JPEGs", "sha256": "cd" * 32, "count": 16},
        "environment": {
            "cpu": "A CPU <64> & more",
            "cores": 2,
            "clocks": {"min_mhz": None, "max_mhz": None, "current_mhz": 2450.0, "governor": None},
            "memory_gib": 23.5,
            "system": "Linux",
            "python": "3.11.7",
            "packages": {"torch": "2.13.0", "onnxruntime": "1.31.1"},
            "threads": {},
            "gpu": None,
        },
        "machine": {
            "1": {
                "matmul_gflops": 92.0,
                "matmul_by_engine": {"onnxruntime": 92.0, "torch": 51.0, "numpy": 49.0},
                "read_gb_s": 17.0,
                "copy_gb_s": 15.0,
            },
            "2": {
                "matmul_gflops": 184.0,
                "matmul_by_engine": {"onnxruntime": 184.0, "torch": 99.0},
                "read_gb_s": 23.0,
                "copy_gb_s": 21.0,
            },
        },
        "work": {
            "flops_per_image": 9_300_000_000,
            "encoder_flops_per_image": 8_800_000_000,
            "weight_bytes": 386_000_000,
            "counted_by": "torch.utils.flop_counter",
        },
        "contenders": [
            *(
                {
                    "name": name,
                    "about": f"{name}, in words",
                    "available": True,
                    "reason": None,
                    "setup_s": {"1": 3.2},
                }
                for name in SPEEDS
            ),
            {
                "name": "bundle/ort-cuda",
                "about": None,
                "available": False,
                "reason": "no CUDA device is on this machine",
                "setup_s": {},
            },
        ],
        "verification": {
            name: {
                "pictures": 16,
                "against": "eager",
                "relative_logit_error": error,
                "embedding_cosine": 0.9999999,
                "top1_agreement": 1.0,
                "passed": True,
                "failures": [],
            }
            for name, error in ERRORS.items()
        },
        "loadgen": [
            {
                "scenario": "Server",
                "valid": True,
                "result": {"completed_samples_per_second": 14.7, "99_percentile_latency_ns": 233_338_126},
                "settings": {"percentile": 0.9, "latency_bound_ms": 220.0, "min_duration_ms": 4000, "attempts": []},
                "log": "results-loadgen/Server/performance-1/mlperf_log_summary.txt",
                "why_invalid": [],
                "accuracy": {"queries": 16, "pictures": 16, "top1_equal_to_direct": 1.0, "differing": []},
            }
        ],
        "finished": True,
    }


def accuracy_document() -> dict[str, Any]:
    """Made-up results of `calipso bench --accuracy`: 21 pictures of three classes, one that cannot be read."""
    from calipso_bench.accuracy import figures

    labels = ["ant", "bee", "crab"]
    truth = np.repeat(np.arange(3), 7)
    ranks = {"zero-shot": [0, 0, 0, 0, 1, 1, 2] * 3, "+ CALIP": [0, 0, 0, 0, 0, 1, 2] * 3}
    best = {name: [int(each) for each in (truth + own) % 3] for name, own in ranks.items()}
    whole = np.array(best["+ CALIP"])
    right = {name: np.array(own) == truth for name, own in best.items()}
    return {
        "schema_version": 1,
        "kind": "calipso-accuracy",
        "bundle": {**_about()["bundle"], "classes": 3},
        "engine": {"backend": "ort", "provider": "CPUExecutionProvider"},
        "data": {"folder": "photos", "split": None, "subset": None, "pictures": 22, "read": 21},
        "labels": labels,
        "unreadable": [{"picture": "bee/broken.jpg", "reason": "bee/broken.jpg cannot be used as a picture: no"}],
        "answers": {
            "truth": truth.tolist(),
            "deployed": {"best": whole.tolist(), "rank": ranks["+ CALIP"]},
            "eager": {name: {"best": best[name], "rank": ranks[name]} for name in ranks},
        },
        "results": {
            "deployed": figures.accuracy(ranks["+ CALIP"]),
            "eager": figures.accuracy(ranks["+ CALIP"]),
            "mcnemar": figures.mcnemar(right["+ CALIP"], right["+ CALIP"]),
            "agreement": {"top1": 1.0, "flips": [], "relative_logit_error": {"max": 1e-6, "mean": 4e-7}},
            "branches": {
                name: {
                    **figures.accuracy(ranks[name]),
                    "mcnemar_to_zero_shot": figures.mcnemar(right["zero-shot"], right[name]),
                }
                for name in ranks
            },
            "per_class": figures.per_class(truth, whole, whole, labels),
        },
    }
