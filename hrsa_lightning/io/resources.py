"""Where recipes, callback presets and embedded assets are found.

In a checkout the folders `recipes/` and `callbacks/` stand beside the package; in a wheel they are
inside it, under `_resources/`. Assets always live in `hrsa_lightning/assets/`, and
`embedded:tiny/base` names `assets/tiny/base` there.
"""

import os
from pathlib import Path

from hrsa_lightning.io.files import expand_user

PACKAGE = Path(__file__).resolve().parent.parent
EMBEDDED = "embedded:"


def resource_folder(name: str) -> Path:
    """Folder of `recipes` or `callbacks`, from the wheel if this is one, else from the checkout."""
    shipped = PACKAGE / "_resources" / name
    return shipped if shipped.is_dir() else PACKAGE.parent / name


def resource_files(name: str) -> dict[str, Path]:
    """YAML files of `recipes` or `callbacks` by their stem, in alphabetical order."""
    return {path.stem: path for path in sorted(resource_folder(name).glob("*.yaml"))}


def resolve_path(path: str) -> str:
    """Replace the prefix `embedded:` by the folder of the package's assets, and expand `~`."""
    if path.startswith(EMBEDDED):
        return str(PACKAGE / "assets" / path.removeprefix(EMBEDDED))
    return expand_user(path)


def cache_folder() -> Path:
    """Where what can be made again is kept for the next process: of `XDG_CACHE_HOME`."""
    base = os.environ.get("XDG_CACHE_HOME") or expand_user("~/.cache")
    return Path(base) / "hrsa_lightning"
