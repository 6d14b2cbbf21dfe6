"""Which model is meant: one name for backbones, adapters, runs, checkpoints and exports.

A model is named by one of

- a hub id, or `ID@REVISION`;
- a backbone's folder, or a folder that `SentenceTransformer` loads, such as an export;
- `embedded:NAME`, which is shipped with the package;
- the folder of a LoRA adapter in peft's format;
- a run's folder or a checkpoint `step_N` of one, which stand for all arms; or one of these and
  `:ARM`.

`find_sources` turns a name into `Source`s and imports no torch, so that a command can answer a
mistake at once. `sources.loading` loads them.
"""

from hrsa_lightning.sources.naming import Arm, Source, find_arms, find_sources, is_run

__all__ = ["Arm", "Source", "find_arms", "find_sources", "is_run"]
