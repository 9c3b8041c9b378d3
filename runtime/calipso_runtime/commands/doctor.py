"""`calipso doctor`: what this machine can run."""

import json

import click
from rich.console import Console
from rich.table import Table

from calipso_runtime import doctor
from calipso_runtime.backends import AUTO_ORDER
from calipso_runtime.doctor import Report, Status

_GIB = 1 << 30


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
def doctor_command(*, as_json: bool) -> None:
    """Tell what this machine can run: engines, providers that really come up, devices, the exporter."""
    report = doctor.examine()
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    table = Table(show_header=False, box=None)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in _rows(report):
        table.add_row(key, value)
    Console(markup=False, emoji=False, highlight=False).print(table)


def _rows(report: Report) -> list[tuple[str, str]]:
    memory = report["memory_bytes"]
    rows = [
        ("calipso", report["calipso"]),
        ("Python", report["python"]),
        ("platform", report["platform"]),
        ("CPU", f"{report['cpu']}, {report['cpu_count']} usable"),
        ("instructions", ", ".join(report["instruction_sets"]) or "unknown"),
        ("memory", "unknown" if memory is None else f"{memory / _GIB:.1f} GiB"),
    ]
    rows += [(name, version or "not installed") for name, version in report["packages"].items()]
    rows.append(("ONNX Runtime", report["onnxruntime_problem"] or str(report["onnxruntime"])))
    rows += _statuses(report["providers"])
    rows.append(("backends", f"--backend auto takes the first that works of {', '.join(AUTO_ORDER)}"))
    rows += _statuses(report["backends"])
    rows += [
        ("CUDA driver", report["cuda_problem"] or f"CUDA {report['cuda_driver']}: {', '.join(report['gpus'])}"),
        ("TensorRT", report["tensorrt"] or "not installed: pip install 'calipso[trt]'"),
        ("TensorRT for RTX", report["tensorrt_rtx"] or "not installed: pip install 'calipso[rtx]'"),
        ("exporter", _exporter(report["exporter"])),
    ]
    return rows


def _statuses(statuses: list[Status]) -> list[tuple[str, str]]:
    return [
        (f"  {status['name']}", ("works: " if status["works"] else "does not work: ") + status["detail"])
        for status in statuses
    ]


def _exporter(found: dict[str, bool]) -> str:
    missing = [name for name, there in found.items() if not there]
    if not missing:
        return "complete"
    return f"missing {', '.join(missing)}: pip install 'calipso[export]'"
