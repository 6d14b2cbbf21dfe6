"""Where a backbone lies: an embedded folder, a local folder or a hub id.

Imports no torch: a command answers a damaged folder before the heavy imports.
"""

import os
import re
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from hrsa_lightning.errors import BackboneError, DataError
from hrsa_lightning.io.files import ADAPTER_CONFIG, exists, expand_user, read_json
from hrsa_lightning.io.pretrained import check_weights
from hrsa_lightning.io.resources import EMBEDDED, PACKAGE

_ASSETS = PACKAGE / "assets"
_PART = r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9_])?"
_HUB_ID = re.compile(rf"(?=.{{1,96}}$)(?!.*(--|\.\.|\.git$))({_PART}/)?{_PART}")


def resolve_backbone(path: str | os.PathLike[str]) -> str:
    """Turns a backbone's path into the folder or hub id to load it from.

    `embedded:tiny/base` is a folder shipped with the package. Otherwise an existing folder wins;
    what cannot be a hub id (it starts with `.`, `~` or `/`, or has more than one slash) must exist,
    and so must `a/b` where a folder `a` is here. Everything else is taken for a hub id and returned
    as it came, unasked.

    Args:
        path: `embedded:NAME`, a local folder, or a hub id such as `Qwen/Qwen3-0.6B-Base`.

    Returns:
        The folder's absolute path, or the hub id.

    Raises:
        BackboneError: the folder does not exist or is no backbone (no config.json, no safetensors).
    """
    text = os.fspath(path)
    if text.startswith(EMBEDDED):
        return _embedded(text.removeprefix(EMBEDDED))
    folder = Path(expand_user(text))
    if exists(folder) and folder.is_dir():
        return _checked(folder)
    if exists(folder):
        raise BackboneError(f"backbone {text!r} is a file; expected a folder or a hub id")
    if _HUB_ID.fullmatch(text):
        if "/" in text and folder.parent.is_dir():
            raise BackboneError(
                f"backbone {text!r}: no such folder in {folder.parent.absolute()}; to take it for "
                "a hub id, start where there is no folder of that name"
            )
        return text
    raise BackboneError(f"backbone {text!r}: no such folder (looked for {folder.absolute()})")


def check_available(path: str | os.PathLike[str]) -> None:
    """Answers a backbone that cannot be had before anything slow begins.

    Raises:
        BackboneError: see `resolve_backbone` and `check_weights`; or it is a hub id, the hub must
            not be asked (`HF_HUB_OFFLINE`), and it was never downloaded.
    """
    source = resolve_backbone(path)
    if Path(source).is_dir():
        check_weights(Path(source))
        return
    if not constants.HF_HUB_OFFLINE:
        return
    name = repo_folder_name(repo_id=source, repo_type="model")
    if not Path(constants.HF_HUB_CACHE, name).is_dir():
        raise BackboneError(
            f"backbone {source!r}: neither a folder nor in the hub's cache "
            f"({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE forbids to download it"
        )


def _embedded(name: str) -> str:
    folder = (_ASSETS / name).resolve()
    if folder.is_dir() and folder.is_relative_to(_ASSETS):
        return _checked(folder)
    known = sorted(
        EMBEDDED + config.parent.relative_to(_ASSETS).as_posix()
        for config in _ASSETS.glob("*/*/config.json")
    )
    raise BackboneError(
        f"backbone {EMBEDDED + name!r} is not shipped with the package; "
        f"expected one of: {', '.join(known) or 'none is installed'}"
    )


def _checked(folder: Path) -> str:
    config = folder / "config.json"
    if not config.is_file():
        hint = ""
        if (folder / ADAPTER_CONFIG).is_file():
            hint = " (a LoRA adapter: give the backbone it was trained on, or a merged export)"
        raise BackboneError(f"backbone {str(folder)!r} has no config.json{hint}")
    try:
        read_json(config)
    except DataError as error:
        raise BackboneError(str(error)) from None
    if not any(folder.glob("*.safetensors")):
        raise BackboneError(
            f"backbone {str(folder)!r} has no *.safetensors file; other weight formats can run "
            "code when they are read and are refused"
        )
    return str(folder.resolve())
