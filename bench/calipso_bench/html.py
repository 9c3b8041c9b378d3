"""The results as one page for people: what was measured on what, tables and plots, and what to doubt."""

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from calipso_bench import web
from calipso_bench.cells import cpu_in_words, threads_in_words
from calipso_bench.markdown import setup
from calipso_bench.report_tables import cell_tables, in_short, own_rows, processes
from calipso_bench.stats import UNSTABLE_CV, summary

Document = Mapping[str, Any]
_GIGA = 1e9


def page(document: Document) -> str:
    """One self-contained page of a results document: no script, nothing loaded from elsewhere."""
    from calipso_bench.report_figures import figures_of

    bundle = document["bundle"]
    figures = figures_of(document)
    latency = (*figures["latency"], cell_tables(document, "latency"))
    throughput = (*figures["throughput"], cell_tables(document, "throughput"))
    return web.page(
        f"{bundle['model']}, {bundle['classes']} classes: measured",
        [
            _lead(document),
            web.section("In short", in_short(document)),
            _warnings(document),
            web.section("Who took part", _contenders(document)),
            web.section("The same answers?", _verification(document)),
            web.section("Latency", *latency),
            web.section("Throughput", *throughput),
            web.section("Speed against fidelity", *figures["fidelity"]),
            web.section("Roofline", *figures["roofline"]),
            web.section("Cold start and memory", processes(document), *figures["processes"]),
            web.section("MLPerf LoadGen", _loadgen(document)),
            web.section("Measured on", _environment(document), _machine(document)),
        ],
    )


def _lead(document: Document) -> str:
    bundle, machine, seen = document["bundle"], document["environment"], document.get("pictures", {})
    heads = [name for name, key in (("CALIP", "calip"), ("Tip-Adapter", "tip_adapter")) if bundle[key]]
    text = (
        f"{bundle['name']}: {bundle['model']}, {bundle['classes']} classes, {bundle['keys']} keys, "
        f"{' and '.join(heads) or 'zero-shot'}, {bundle['precision']}, {bundle['file_bytes'] / 1e6:.1f} MB, sha256 "
        f"{bundle['sha256'][:12]}. On {cpu_in_words(machine)}, {machine['cores']} cores. "
        f"Pictures: {seen.get('source', 'not said')}."
    )
    random = (
        "The weights are random: this measures speed, it does not classify." if bundle["weights"] == "random" else ""
    )
    unfinished = "" if document["finished"] else "This run is not finished: cells are missing."
    return web.paragraph(text) + web.paragraph(random, "failed") + web.paragraph(unfinished, "failed")


def _contenders(document: Document) -> str:
    rows = []
    for line in document["contenders"]:
        about = line["about"] if line["available"] else f"not run: {line['reason']}"
        rows.append((str(line["name"]), about, setup(line)))
    return web.table(("contender", "what it is", "ready in s"), rows, words=2, own=own_rows(row[0] for row in rows))


def _verification(document: Document) -> str:
    rows = []
    for name, found in document["verification"].items():
        cosine = found["embedding_cosine"]
        rows.append(
            (
                name,
                "passed" if found["passed"] else f"failed, not timed: {'; '.join(found.get('failures', ()))}",
                found["pictures"],
                f"{found['relative_logit_error']:.1e}",
                f"{found['top1_agreement']:.2%}",
                "-" if cosine is None else f"{cosine:.7f}",
            )
        )
    columns = ("contender", "gates", "pictures", "worst logit error", "top-1 agreement", "lowest cosine")
    rechecked = sum(cell["rechecked"] for cell in document["cells"])
    note = f"Checked before timing, on every stage; {rechecked} timed answers were checked again, off the clock."
    return web.table(columns, rows, words=2, own=own_rows(row[0] for row in rows)) + web.paragraph(note, "note")


def _loadgen(document: Document) -> str:
    parts = []
    for entry in document["loadgen"]:
        verdict = "VALID" if entry["valid"] else f"INVALID: {' '.join(entry.get('why_invalid', ()))}"
        numbers = [(name.replace("_", " "), f"{value:,}") for name, value in entry["result"].items()]
        accuracy = entry.get("accuracy")
        same = (
            f" In accuracy mode {accuracy['top1_equal_to_direct']:.2%} of {accuracy['queries']} logged answers are "
            "those of direct calls."
            if accuracy
            else ""
        )
        settings = f"<pre class=wide>{escape(json.dumps(entry['settings'], indent=1))}</pre>"
        parts.append(
            f"<h3>{escape(entry['scenario'])}</h3>"
            + web.paragraph(f"{verdict}.{same} Log: {entry['log']}", "passed" if entry["valid"] else "failed")
            + web.table(("what LoadGen reports", "value"), numbers)
            + web.folded("settings", settings)
        )
    note = "Driven by MLCommons' LoadGen with short settings, which are listed; this is no MLPerf submission."
    return web.paragraph(note, "note") + "".join(parts) if parts else ""


def _environment(document: Document) -> str:
    found = document["environment"]
    rows = [(name, _words(value)) for name, value in found.items()]
    rows += [("calipso", document["calipso"]), ("commit", document["commit"] or "not known")]
    rows += [("settings", _words(document["config"]))]
    return web.table(("what", "value"), rows, words=2)


def _words(value: Any) -> str:
    """JSON's values for people."""
    if isinstance(value, Mapping):
        return "; ".join(f"{name} {_words(each)}" for name, each in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_words, value)) or "none"
    return "not known" if value is None else str(value)


def _machine(document: Document) -> str:
    rows = [
        (
            threads_in_words(int(threads)),
            ", ".join(f"{name} {value:.0f}" for name, value in peaks["matmul_by_engine"].items()),
            f"{peaks['matmul_gflops']:.0f}",
            f"{peaks['read_gb_s']:.1f}",
            f"{peaks['copy_gb_s']:.1f}",
        )
        for threads, peaks in document["machine"].items()
    ]
    work = document["work"]
    counted = (
        f"Work per picture: {work['flops_per_image'] / _GIGA:.2f} GFLOP, of which the encoder "
        f"{work['encoder_flops_per_image'] / _GIGA:.2f}, counted by {work['counted_by']}."
        if work
        else ""
    )
    columns = ("limits", "matmul by engine, GFLOP/s", "best", "read GB/s", "copy GB/s")
    return web.table(columns, rows, words=2) + web.paragraph(counted, "note")


def _warnings(document: Document) -> str:
    """Each unstable cell, with the command that measures it again, longer."""
    lines = []
    for cell in document["cells"]:
        unstable = [name for name, own in cell["samples_ms"].items() if summary(own).cv > UNSTABLE_CV]
        if unstable:
            where = f"{cell['scenario']}, {cell['stage']}, batch {cell['batch']}, {cell['threads']} thread(s)"
            lines.append(
                f"<li>{escape(where)}: {escape(', '.join(unstable))}<br><code>{_again(document, cell)}</code></li>"
            )
    if not lines:
        return ""
    text = f"The spread is above {UNSTABLE_CV:.0%} of the mean in these cells. Measure them again, longer:"
    pin = "Or pin the process to idle cores (taskset -c 0,1 ...), or give it fewer --threads."
    return web.folded(f"{len(lines)} unstable cells", f"<p>{text}</p><ul>{''.join(lines)}</ul><p>{pin}</p>")


def _again(document: Document, cell: Document) -> str:
    against = ",".join(document["config"].get("against", ()))
    command = (
        f"calipso bench {document['bundle']['name']}{f' --against {against}' if against else ''} --scenario "
        f"{cell['scenario']} --stages {cell['stage']} --batch {cell['batch']} --threads {cell['threads']} --seconds "
        f"{2 * document['config'].get('seconds', 10):g}"
    )
    return escape(command)
