"""What a graph of raw pixels takes, as its manifest says it: the one thing that any host has to know."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from calipso_runtime.errors import BundleSchemaError

# By order of the channels: where red, green and blue lie in it.
CHANNEL_ORDERS: Mapping[str, tuple[int, int, int]] = {
    "rgb": (0, 1, 2),
    "bgr": (2, 1, 0),
    "rgba": (0, 1, 2),
    "bgra": (2, 1, 0),
}
RESIZE_FORMS = OP, MATMUL = ("op", "matmul")
# Which of a resize's two passes comes first, by the releases of Pillow that do it so.
PASS_ORDERS = PILLOW_13, PILLOW_12 = ("pillow-13", "pillow-12")
_FIRST_OF_THE_NEW = 13


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelInput:
    """What `pixels` is: uint8 [B,H,W,C], as decoders give it.

    Attributes:
        channels: order of C, out of `CHANNEL_ORDERS`. The graph does not look at alpha: it has to be opaque.
        size: H and W, where they are fixed; None where each batch may be of another size.
        resize: how the graph resizes: "op", the Resize operator; "matmul", products with Pillow's own weights.
        passes: the order of the two passes, out of `PASS_ORDERS`.
    """

    channels: str = "rgb"
    size: tuple[int, int] | None = None
    resize: str = OP
    passes: str = PILLOW_13

    def __post_init__(self) -> None:
        allowed = (("channels", CHANNEL_ORDERS), ("resize", RESIZE_FORMS), ("passes", PASS_ORDERS))
        for name, values in allowed:
            if getattr(self, name) not in values:
                message = f"its pixels have {name} {getattr(self, name)!r}: expected one of {', '.join(values)}"
                raise BundleSchemaError(message)
        size = self.size
        if size is not None and not (len(size) == 2 and all(_is_count(each) for each in size)):  # noqa: PLR2004 - H, W
            message = f"its pixels have size {size!r}: expected height and width, or none"
            raise BundleSchemaError(message)
        if self.resize == MATMUL and size is None:
            message = "its pixels are resized by constant matrices, which needs their size"
            raise BundleSchemaError(message)

    @property
    def shape(self) -> tuple[int | None, int | None, int]:
        """Of one picture: H, W and C; None where it may be any."""
        height, width = self.size or (None, None)
        return height, width, len(self.channels)

    @property
    def has_alpha(self) -> bool:
        """Whether there is a fourth channel."""
        return self.channels.endswith("a")

    def as_json(self) -> dict[str, Any]:
        """For the manifest; its `name` is not here."""
        return {**dataclasses.asdict(self), "dtype": "uint8", "layout": "NHWC"}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "PixelInput":
        """Out of a manifest's `input`; what it does not know is left aside.

        Raises:
            BundleSchemaError: a setting has another value than those above.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        values = {name: value for name, value in document.items() if name in known}
        if isinstance(values.get("size"), list):
            values["size"] = tuple(values["size"])
        try:
            return cls(**values)
        except TypeError as error:
            message = f"its pixels cannot be read: {error}"
            raise BundleSchemaError(message) from error


def passes_of(pillow: str) -> str:
    """The order of the passes of a release of Pillow."""
    return PILLOW_13 if int(pillow.partition(".")[0]) >= _FIRST_OF_THE_NEW else PILLOW_12


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
