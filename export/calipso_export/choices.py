"""What settings of an export may be, and why some do not go together."""

OPSETS = (18, 20, 22, 23, 24, 25)
OUTPUTS = ("logits", "embedding", "probabilities", "tokens")
TARGETS = ("cpu", "gpu")
GELU, QUICK_GELU = ACTIVATIONS = ("gelu", "quick-gelu")
IO_DTYPES = ("fp32", "fp16")
INPUTS = ("image", "points")
VIEW_COUNTS = (6, 10)
# By name, beside weights that are given: the same for all views, or searched on the shots.
EQUAL, SEARCH = "equal", "search"
BAKED, AS_INPUTS, OPEN, EMBED = HEAD_MODES = ("baked", "inputs", "open", "embed")
# What the graphs of a bundle give that takes any labels.
OPEN_OUTPUTS = ("logits", "embedding")
NO_CALIP = (
    "CALIP does not go with head_mode inputs: what is taught is calibrated, and checked in numpy, from embeddings "
    "alone, and CALIP needs every token of every photo. Leave --calip, --calip-fs, --b2 and --b3 away, or bake the head"
)
NO_OPEN_CALIP = (
    "CALIP does not go with head modes open and embed: its weights are searched on example photos of known classes. "
    "Leave --calip, --b2 and --b3 away, or bake the head"
)
# Where weights come from: one of them.
WEIGHTS = ("pretrained", "checkpoint", "random_init")
# What open_clip calls the configuration in a hub's snapshot.
SNAPSHOT = "open_clip_config.json"
