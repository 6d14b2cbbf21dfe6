"""Fetch what a recipe needs: `python -m hrsa_lightning.fetch recipe=NAME --out DIR`.

What is fetched lies in one folder with a recipe that names it by local paths. A fetch that was
stopped goes on with what is missing.
"""

import argparse
import dataclasses
import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hrsa_lightning.cli import CommandParser, answered
from hrsa_lightning.config import Config, load_settings, to_yaml
from hrsa_lightning.config.schema import is_backbone
from hrsa_lightning.data.entries import PairEntry
from hrsa_lightning.data.pairs import EntryPairs, read_pairs
from hrsa_lightning.errors import BackboneError, ConfigError, first_line
from hrsa_lightning.io.files import is_file, read_json, replacing, write_json, write_text
from hrsa_lightning.io.pairs import pair_line
from hrsa_lightning.io.pretrained import MODEL_FILES, check_weights
from hrsa_lightning.io.resources import EMBEDDED
from hrsa_lightning.io.sources import HUB_PREFIX, TextEntry, is_address, is_entry
from hrsa_lightning.models.paths import resolve_backbone

_EPILOG = """\
OUT has data/*.jsonl in the training format, models/*, fetched.json (revisions, pairs, licenses) and
recipe.yaml, for `train recipe=OUT/recipe.yaml` with the network cut."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (2 for a mistake of the user)."""
    return answered(lambda: _run(_parser().parse_intermixed_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "fetch",
        usage="%(prog)s recipe=NAME [key=value ...] [--out DIR] [--root DIR]",
        description="Put a recipe's data and backbones in one folder, to train without a network.",
        epilog=_EPILOG,
    )
    add: Any = parser.add_argument
    add("settings", nargs="*", metavar="key=value", help="recipe=NAME and overrides, as for train")
    add("--out", metavar="DIR", help="where to (fetched/NAME)")
    add("--root", metavar="DIR", help="where OUT will lie on the machine that trains (OUT)")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    config = load_settings(arguments.settings)
    out = Path(arguments.out or f"fetched/{config.name}").absolute()
    if is_file(out):
        raise ConfigError(f"--out: expected a folder, got a file: {out}")
    root = Path(arguments.root).absolute() if arguments.root else out
    recipe = fetch(config, out, root)
    print(f"train it: python -m hrsa_lightning.train recipe={recipe}")
    return 0


def fetch(config: Config, out: Path, root: Path | None = None) -> Path:
    """Fetch the data and the backbones of a recipe.

    Args:
        config: The recipe.
        out: A folder.
        root: Where the folder will lie when it is trained from; the default is `out`.

    Returns:
        The recipe with local paths, in `root`.

    Raises:
        DataError: Data cannot be read, or are malformed.
        BackboneError: A backbone cannot be fetched, or comes without safetensors.
    """
    root = root or out
    out.mkdir(parents=True, exist_ok=True)
    record = _Record(out / "fetched.json")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data))
    entries = [PairEntry.of(entry) for entry in config.data.train]
    names = _file_names(entries)
    config.data.train = [
        _fetch_pairs(entry, config.data.limit, out, f"data/{name}.jsonl", record, root)
        for entry, name in zip(entries, names, strict=True)
    ]
    config.data.limit = None
    remote_code = config.model.trust_remote_code
    config.arms = {
        name: dataclasses.replace(
            arm,
            backbone=_fetch_backbone(arm.backbone, arm.revision, out, record, root, remote_code),
            revision=None,
        )
        for name, arm in config.arms.items()
    }
    config.callbacks = {
        name: {**entry, "probes": _fetch_probes(entry["probes"], name, out, record, root)}
        if "probes" in entry
        else entry
        for name, entry in config.callbacks.items()
    }
    alignment = config.loss.alignment
    if alignment is not None and is_backbone(alignment.reference):
        local = _fetch_backbone(alignment.reference, None, out, record, root, remote_code)
        alignment = dataclasses.replace(alignment, reference=local)
        config.loss = dataclasses.replace(config.loss, alignment=alignment)
    write_text(out / "recipe.yaml", to_yaml(config))
    return root / "recipe.yaml"


class _Record:
    """What was fetched, by its path in the folder: written after each, read when going on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._content = read_json(path) if path.is_file() else {}

    def find(self, name: str, asked: Mapping[str, Any]) -> dict[str, Any] | None:
        """What is known of a file or folder that is there and was made for the same request."""
        known = self._content.get(name)
        if known is None or known["asked"] != asked or not (self._path.parent / name).exists():
            return None
        return dict(known)

    def add(self, name: str, asked: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        self._content[name] = {"asked": asked, **found}
        write_json(self._path, self._content)


def _file_names(entries: Sequence[PairEntry]) -> list[str]:
    """A name for the file of each entry, numbered where two are alike."""
    names: list[str] = []
    for entry in entries:
        text = entry.name or Path(entry.path.removeprefix(HUB_PREFIX)).stem
        name = re.sub(r"[^\w.-]+", "_", text).strip("_.")[:100] or "pairs"
        count = sum(other == name or re.fullmatch(rf"{re.escape(name)}-\d+", other) is not None
                    for other in names)  # fmt: skip
        names.append(f"{name}-{count + 1}" if count else name)
    return names


def _fetch_pairs(
    entry: PairEntry, limit: int | None, out: Path, name: str, record: _Record, root: Path
) -> dict[str, Any]:
    """Write one source in the training format; returns its entry with the local path."""
    asked = {key: value for key, value in dataclasses.asdict(entry).items() if value is not None}
    asked |= {} if limit is None else {"data.limit": limit}
    known = record.find(name, asked)
    if known is None:
        info: dict[str, Any] = {}
        if entry.is_hub:
            info = _hub_info(entry.hub_name, entry.revision, "dataset")
            entry = dataclasses.replace(entry, revision=info["revision"])
        (source,) = read_pairs([entry], limit)
        assert isinstance(source, EntryPairs)
        (out / name).parent.mkdir(exist_ok=True)
        with replacing(out / name) as partial, partial.open("w", encoding="utf-8") as file:
            for row in range(len(source.negative_counts)):
                file.write(pair_line(source[row]))
        known = {"pairs": len(source.negative_counts), "columns": source.layouts}
        known |= info
        record.add(name, asked, known)
    title = entry.title.removeprefix(HUB_PREFIX)
    origin = f" at {known['revision'][:10]}" if known.get("revision") else ""
    print(f"  {title}{origin}: {known['pairs']:,} pairs -> {name}{_licensed(known)}", flush=True)
    local = {"path": str(root / name), "name": entry.name, "rows": known["pairs"]}
    local |= {"negatives": entry.negatives, "weight": entry.weight}
    return {key: value for key, value in local.items() if value is not None}


def _fetch_probes(probes: Any, name: str, out: Path, record: "_Record", root: Path) -> Any:
    """Write probe sets of the hub as JSON lines; returns what stands in their place."""
    if isinstance(probes, Mapping) and not is_entry(probes):
        return {
            key: _fetch_probes(value, f"{name}.{key}", out, record, root)
            for key, value in probes.items()
        }
    is_text = isinstance(probes, str)
    if not is_entry(probes) or (is_text and not is_address(probes)):
        return probes
    entry = TextEntry.of(probes)
    if not entry.is_hub:
        return probes
    file = f"probes/{name}.jsonl"
    asked = {key: value for key, value in dataclasses.asdict(entry).items() if value is not None}
    known = record.find(file, asked)
    if known is None:
        info = _hub_info(entry.hub_name, entry.revision, "dataset")
        _, texts, labels = dataclasses.replace(entry, revision=info["revision"]).read()
        lines = [{"text": text} for text in texts]
        for line, label in zip(lines, labels or (), strict=False):
            line["label"] = label
        write_text(out / file, "".join(json.dumps(line) + "\n" for line in lines))
        known = {"texts": len(texts), **info}
        record.add(file, asked, known)
    print(f"  {entry.hub_name}: {known['texts']:,} texts -> {file}{_licensed(known)}", flush=True)
    own = {key: getattr(entry, key) for key in ("level", "max_length", "max_tokens")}
    return {"path": str(root / file), **{k: v for k, v in own.items() if v is not None}}


def _fetch_backbone(
    backbone: str, revision: str | None, out: Path, record: _Record, root: Path, remote_code: bool
) -> str:
    """Download a backbone of the hub; returns its folder, or a local one as an absolute path."""
    source = resolve_backbone(backbone)
    if Path(source).is_dir():
        return backbone if backbone.startswith(EMBEDDED) else source
    pinned = f"@{re.sub(r'[^A-Za-z0-9._-]', '_', revision[:10])}" if revision else ""
    name = f"models/{source.replace('/', '--')}{pinned}"
    asked = {"backbone": source, "revision": revision, "trust_remote_code": remote_code}
    known: Mapping[str, Any] | None = record.find(name, asked)
    if known is None:
        info = _hub_info(source, revision, "model")
        patterns = [*MODEL_FILES, *(["*.py"] if remote_code else [])]
        try:
            download(source, info["revision"] or revision, out / name, patterns)
        # Errors of the hub's client, of its transport and of the disk come through.
        except Exception as error:
            raise BackboneError(f"backbone {source!r}: {first_line(error)}") from error
        resolve_backbone(out / name)
        check_weights(out / name)
        shutil.rmtree(out / name / ".cache", ignore_errors=True)
        known = info
        record.add(name, asked, known)
    origin = f" at {known['revision'][:10]}" if known.get("revision") else ""
    print(f"  {source}{origin} -> {name}{_licensed(known)}", flush=True)
    return str(root / name)


def _licensed(known: Mapping[str, Any]) -> str:
    return f" (license: {known['license']})" if known.get("license") else ""


def download(name: str, revision: str | None, folder: Path, patterns: list[str]) -> None:
    """Files of a model of the hub, in a folder."""
    from huggingface_hub import snapshot_download

    snapshot_download(name, revision=revision, local_dir=folder, allow_patterns=patterns)


def _hub_info(name: str, revision: str | None, kind: str) -> dict[str, Any]:
    """Commit and license of a repository, as far as the hub says."""
    from huggingface_hub import HfApi

    try:
        info: Any = HfApi().repo_info(name, revision=revision, repo_type=kind)
        card = info.card_data
    except Exception:  # offline, with files in the hub's cache; or a hub without this call
        return {"revision": revision, "license": None}
    license_ = getattr(card, "license", None)
    return {"revision": info.sha, "license": None if license_ is None else str(license_)}


if __name__ == "__main__":
    sys.exit(main())
