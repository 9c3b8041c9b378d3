"""Whether a bundle's eight-bit products can overflow on this CPU.

An x86 CPU without VNNI adds the products of two neighbouring channels in 16 bits, with saturation. The exporter scales
int8 weights so that no pair can overflow; bundles of `--full-range`, and of earlier versions, lack this guarantee.
Their backends use another form of the same weights on such a CPU: slower, with the same answers.
"""

from calipso_runtime import devices
from calipso_runtime.bundle import Bundle
from calipso_runtime.errors import BundleSchemaError
from calipso_runtime.head.file import manifest_of

# Precisions in which a CPU may multiply int8 by int8.
MULTIPLIED_IN_INT8 = ("int8", "int8-dynamic", "int8-fp16")
# What each backend computes with instead of weights that are not pair-safe, on an x86 CPU without VNNI.
FORMS_WITHOUT_VNNI = {"ort": "uint8 weights", "openvino": "fp32 products"}


def may_overflow(bundle: Bundle) -> bool:
    """Whether products of this bundle may overflow the 16 bits in which this CPU adds them."""
    if not devices.adds_pairs_in_16_bits():
        return False
    try:
        manifest = manifest_of(bundle)
    except BundleSchemaError:
        # The engine says best what is wrong with a graph without a manifest.
        return True
    precision = manifest.graph.get("precision", {})
    return manifest.precision in MULTIPLIED_IN_INT8 and not precision.get("pair_safe", False)
