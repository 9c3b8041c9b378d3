"""Draws pictures with their predicted labels on one sheet: right ones in green, wrong ones in red."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

_TILE_PX = 172
_TEXT_PX = 54
_MARGIN_PX = 10
_COLUMNS = 8
_FONT_PX = 12
_RIGHT, _WRONG = "#06752f", "#b00020"


def write_contact_sheet(path: Path, answers: Sequence[dict[str, Any]]) -> None:
    """Write a PNG.

    Args:
        path: the file to write.
        answers: each with `path` (in a folder named like its class), `label` and `probability`.
    """
    rows = -(-len(answers) // _COLUMNS)
    width = _MARGIN_PX + _COLUMNS * (_TILE_PX + _MARGIN_PX)
    height = _MARGIN_PX + rows * (_TILE_PX + _TEXT_PX + _MARGIN_PX)
    sheet = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_PX)
    for index, answer in enumerate(answers):
        left = _MARGIN_PX + index % _COLUMNS * (_TILE_PX + _MARGIN_PX)
        top = _MARGIN_PX + index // _COLUMNS * (_TILE_PX + _TEXT_PX + _MARGIN_PX)
        with Image.open(answer["path"]) as picture:
            picture.thumbnail((_TILE_PX, _TILE_PX))
            shown = picture.convert("RGB").resize(_fit(picture.size))
        sheet.paste(shown, (left + (_TILE_PX - shown.width) // 2, top + (_TILE_PX - shown.height) // 2))
        truth = Path(answer["path"]).parent.name
        right = answer["label"] == truth
        text = f"{answer['label']}\n{answer['probability']:.0%}"
        text += "" if right else f", but it is:\n{truth}"
        pen.multiline_text((left, top + _TILE_PX + 4), text, fill=_RIGHT if right else _WRONG, font=font)
    sheet.save(path)


def _fit(size: tuple[int, int]) -> tuple[int, int]:
    scale = _TILE_PX / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
