"""The bundle's report: what `manifest.json` and `parity.json` say, as one page without dependencies."""

from collections.abc import Sequence
from html import escape
from typing import Any

from calipso_export.heads import attribute, few_shot_class
from calipso_export.report_confidence import confidence_section
from calipso_export.report_precision import precision_section
from calipso_export.report_table import table
from calipso_runtime.manifest import Manifest

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a }
table { border-collapse: collapse; margin: 1rem 0 } th, td { border-bottom: 1px solid #ddd; padding: .3rem .8rem }
th { text-align: left } td { font-variant-numeric: tabular-nums } .passed { color: #06752f } .failed { color: #b00020 }
svg { background: #fafafa; border: 1px solid #ddd }
"""
_MOST_LABELS = 100
_WIDTH, _HEIGHT = 520, 180
CANDIDATE_COLUMNS = ("head", "top-1", "95 % interval", "points over zero-shot", "McNemar's p")
_NO_PARAMETERS = ("name", "used", "epochs", "chosen")


def report_html(manifest: Manifest, parity: dict[str, Any], curves: dict[str, list[dict[str, Any]]]) -> str:
    """One self-contained page."""
    model, few_shot = manifest.model, manifest.few_shot
    title = f"{model['name']}, {len(manifest.labels)} classes"
    if manifest.takes_labels:
        title = f"{model['name']}, for any labels"
    weights = ", ".join(f"{key} {value}" for key, value in model["weights"].items() if key != "sha256")
    warning = "<p class=failed>The weights are random: this bundle measures, it does not classify.</p>"
    parts = [
        f"<h1>{escape(title)}</h1>",
        warning if model["weights"]["source"] == "random" else "",
        f"<p>Parity with eager PyTorch: <strong class={parity['status']}>{parity['status']}</strong></p>",
        *(f"<p class=failed>{escape(failure)}</p>" for failure in parity["failures"]),
        _parity(parity),
        _accuracy(parity.get("accuracy")),
        precision_section(manifest, parity),
        "<h2>Model</h2>",
        table(
            ("what", "value"),
            [
                ("weights", weights),
                ("weights' sha256", model["weights"]["sha256"]),
                ("logit scale, bias", f"{model['logit_scale']:.4f}, {model['logit_bias']:.4f}"),
                ("prompts", manifest.prompts["source"]),
                ("input", ", ".join(f"{key}: {value}" for key, value in manifest.input.items())),
                ("preprocessing", str(manifest.as_json()["preprocess"])),
                ("preprocessing from", model.get("preprocess_from", "not recorded")),
                ("precision", manifest.precision),
                ("graph", f"opset {manifest.graph['opset']}, {manifest.graph['nodes']} nodes"),
                ("linted for", ", ".join(manifest.graph["targets"])),
                ("tools", ", ".join(f"{name} {version}" for name, version in manifest.tools.items())),
            ],
        ),
        "<h2>Heads</h2>",
        _head(few_shot_class(few_shot["name"]).title, few_shot),
        _curve(curves.get(attribute(few_shot["name"]))),
        _candidates(few_shot),
        _head("CALIP", manifest.head["calip"]),
        _curve(curves.get("calip")),
        _head("CALIP-FS", manifest.head["calip_fs"]) if "calip_fs" in manifest.head else "",
        _curve(curves.get("calip_fs")),
        confidence_section(manifest.confidence, curves),
        "<h2>Classes</h2>",
        f"<p>{escape(_labels(manifest.labels))}</p>",
    ]
    body = "\n".join(part for part in parts if part)
    return (
        f"<!doctype html>\n<html lang=en><meta charset=utf-8><title>{escape(title)}</title>"
        f"<style>{_STYLE}</style>\n{body}\n</html>\n"
    )


def _parity(parity: dict[str, Any]) -> str:
    pictures = parity["pictures"]
    rows = []
    for batch, measured in parity["by_batch"].items():
        error = measured["relative_logit_error"]
        cosine = measured.get("embedding_cosine", {})
        rows.append(
            (
                batch,
                measured["pictures"],
                f"{error['max']:.2e}",
                f"{error['p99']:.2e}",
                f"{error['mean']:.2e}",
                f"{measured['error_to_margin']['p99']:.2e}",
                f"{cosine['min']:.8f}" if cosine else "",
                f"{cosine['p1']:.8f}" if cosine else "",
                f"{measured['same_top1']:.2%}",
                f"{measured['top1_agreement']:.2%}",
            )
        )
    columns = (
        "batch",
        "pictures",
        "worst logit error",
        "p99",
        "mean",
        "p99 of error to margin",
        "lowest cosine",
        "p1",
        "same top class",
        "ties excepted",
    )
    flips = [flip for measured in parity["by_batch"].values() for flip in measured["flips"]]
    listed = table(("picture", "eager", "shipped", "margin", "tie"), [tuple(flip.values()) for flip in flips])
    return (
        f"<p>{escape(parity['shipped'])}, against {escape(parity['eager'])}. Pictures: {escape(pictures['source'])} "
        f"({pictures['count']}) and {pictures['edge_cases']} edge cases. Errors are relative to a picture's largest "
        "logit, measured from the mean of its logits; the margin is eager's lead of the first class "
        "over the second: from one half on a flip is possible.</p>"
        + table(columns, rows)
        + "".join(f"<p>{escape(line)}</p>" for line in made_anew(parity))
        + (f"<h3>Flips</h3>{listed}" if flips else "")
    )


def made_anew(parity: dict[str, Any]) -> list[str]:
    """One line about each thing that both sides share, how well a sample of it could be made again; and about texts."""
    return [
        f"{what} made anew with open_clip's own forward: {check['checked']} of {check['of']}, "
        f"lowest cosine {check['min_cosine']:.7f}"
        for what, check in parity["made_anew"].items()
    ] + [
        f"{len(parity['texts']['asked'])} texts by {name} against open_clip's encode_text: worst relative error "
        f"{found['relative_error']:.1e}, lowest cosine {found['min_cosine']:.7f}"
        for name, found in parity.get("texts", {"by_file": {}})["by_file"].items()
    ]


def _accuracy(accuracy: dict[str, Any] | None) -> str:
    if accuracy is None:
        return ""
    rows = []
    for side in ("eager", "shipped"):
        low, high = accuracy[side]["interval_95"]
        rows.append((side, f"{accuracy[side]['top1']:.2%}", f"{low:.2%} to {high:.2%}", accuracy["pictures"]))
    low, high = accuracy["drop_interval_95"]
    difference = (
        f"<p>Lost against eager: {100 * accuracy['drop']:.2f} points (95 % interval {100 * low:.2f} to "
        f"{100 * high:.2f}); right on one side only: {accuracy['only_eager_right']} eager, "
        f"{accuracy['only_shipped_right']} shipped; McNemar's exact p {accuracy['mcnemar_p']:.3g}.</p>"
    )
    return "<h2>Accuracy</h2>" + table(("side", "top-1", "95 % interval", "pictures"), rows) + difference


def _head(name: str, record: dict[str, Any]) -> str:
    chosen = record.get("chosen", {})
    if record["used"]:
        values = ", ".join(f"{key} {value}" for key, value in record.items() if key not in _NO_PARAMETERS)
        text = f"{values}; chosen by: {chosen['method']}"
    else:
        text = f"not used: {record['reason']}"
    if "accuracy_with" in chosen:
        text += (
            f"; {chosen['photos']} photos, accuracy {chosen['accuracy_without']:.2%} without and "
            f"{chosen['accuracy_with']:.2%} with it"
        )
    return f"<h3>{name}</h3><p>{escape(text)}</p>"


def candidate_rows(record: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row per head that "auto" tried; none where a head was asked for."""
    return [_candidate(each) for each in record.get("chosen", {}).get("candidates", [])]


def _candidate(each: dict[str, Any]) -> tuple[str, ...]:
    if "left_out" in each:
        return (each["title"], "left out", each["left_out"], "", "")
    low, high = each["interval_95"]
    cells = (each["title"], f"{each['top1']:.2%}", f"{low:.2%} to {high:.2%}")
    if "gain" not in each:
        return (*cells, "", "")
    low, high = each["gain_interval_95"]
    return (*cells, f"{100 * each['gain']:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})", f"{each['mcnemar_p']:.3g}")


def _candidates(record: dict[str, Any]) -> str:
    rows = candidate_rows(record)
    if not rows:
        return ""
    return (
        "<h4>Candidates</h4>"
        + table(CANDIDATE_COLUMNS, rows)
        + f"<p>{escape(record['chosen']['method'])}: every photo is judged by heads that were fitted without it, the "
        "same photos for all. Intervals are of 95 %.</p>"
    )


def _curve(curve: Sequence[dict[str, float]] | None) -> str:
    """Accuracy, and loss where something was trained, over the first of its values, at the best value of the others."""
    if not curve:
        return ""
    axis = next(iter(curve[0]))
    accuracy = [(point[axis], point["accuracy"]) for point in curve]
    low, high = min(point["accuracy"] for point in curve), max(point["accuracy"] for point in curve)
    drawn = _line(accuracy, f"Validation accuracy from {low:.2%} to {high:.2%}", axis)
    loss = [(point[axis], point["loss"]) for point in curve if "loss" in point]
    return drawn + (_line(loss, f"Training loss from {loss[0][1]:.4f} to {loss[-1][1]:.4f}", axis) if loss else "")


def _line(points: Sequence[tuple[float, float]], caption: str, axis: str) -> str:
    xs, ys = zip(*points, strict=True)
    low, high = min(ys), max(ys)
    span_x, span_y = (xs[-1] - xs[0]) or 1.0, (high - low) or 1.0
    drawn = " ".join(
        f"{(x - xs[0]) / span_x * _WIDTH:.1f},{_HEIGHT - (y - low) / span_y * _HEIGHT:.1f}" for x, y in points
    )
    return (
        f"<svg viewBox='-10 -10 {_WIDTH + 20} {_HEIGHT + 20}' width={_WIDTH} role=img>"
        f"<polyline points='{drawn}' fill=none stroke=#0b57d0 stroke-width=2 /></svg>"
        f"<p>{caption} over {axis} from {xs[0]} to {xs[-1]}.</p>"
    )


def _labels(labels: Sequence[str]) -> str:
    shown = ", ".join(labels[:_MOST_LABELS])
    return shown if len(labels) <= _MOST_LABELS else f"{shown} and {len(labels) - _MOST_LABELS} more"
