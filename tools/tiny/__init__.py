"""Parts of the builder of `hrsa_lightning/assets/tiny` (see `tools/build_tiny.py`)."""

BACKBONES = ("base", "rlvr", "prorl", "sft")
