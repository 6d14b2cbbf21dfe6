"""The folder of what a call of `mine` has done so far, and what of it the next call may use."""

import json
import shutil
from pathlib import Path
from typing import Any

from hrsa_lightning.errors import ConfigError, DataError
from hrsa_lightning.mine.output import complete_files


class WorkFolder:
    """Embeddings and search results that are written block by block, so that a call can go on.

    Args:
        path: The folder; made when it is first used.
        keep: Leave it there in the end.

    Attributes:
        queries: File of the embeddings of queries.
        passages: File of the embeddings of passages.
        found: File of what was found for each pair.
    """

    def __init__(self, path: Path, *, keep: bool) -> None:
        self.path = path
        self._keep = keep
        self.queries = path / "queries.f32"
        self.passages = path / "passages.f32"
        self.found = path / "negatives.bin"
        self._state = path / "mining.json"
        self._renaming = path / "renaming.json"

    def check(self) -> None:
        """Refuse what can be no folder.

        Raises:
            ConfigError: It is a file, or there is no folder to make it in.
        """
        if not self.path.absolute().parent.is_dir():
            raise ConfigError(f"work: there is no folder {self.path.absolute().parent}")
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"work: {self.path} is a file; expected a folder")

    def open(self, embeddings: str, search: str, num_bytes: int) -> None:
        """Drop what an earlier call left behind, as far as this one cannot go on from it.

        Args:
            embeddings: What embeddings depend on; others are dropped.
            search: What search results depend on besides.
            num_bytes: What all files will need.

        Raises:
            DataError: The disk has no room for them.
        """
        state = {"embeddings": embeddings, "search": search}
        self.path.mkdir(exist_ok=True)
        old = self._read(self._state)
        if old.get("embeddings") != embeddings:
            self.queries.unlink(missing_ok=True)
            self.passages.unlink(missing_ok=True)
        if old != state:
            self.found.unlink(missing_ok=True)
            with complete_files([self._state]) as opened:
                opened[self._state].write(json.dumps(state) + "\n")
        files = (self.queries, self.passages, self.found)
        needed = num_bytes - sum(file.stat().st_size for file in files if file.exists())
        free = shutil.disk_usage(self.path).free
        if needed > free:
            raise DataError(
                f"{self.path}: embeddings need {needed / 1e9:.1f} GB more, and "
                f"{free / 1e9:.1f} GB are free; name another folder with work"
            )

    def begin_renaming(self, files: list[Path]) -> None:
        """Say that these files are the result of this call, which may be stopped among them."""
        content = json.dumps({"files": [str(file.absolute()) for file in files]})
        self._renaming.write_text(content + "\n", encoding="utf-8")

    def renaming(self) -> set[Path]:
        """Files that an earlier call was stopped among, and that may be written again."""
        return {Path(file) for file in self._read(self._renaming).get("files", ())}

    def close(self) -> None:
        """The result is complete."""
        self._renaming.unlink(missing_ok=True)
        if not self._keep:
            shutil.rmtree(self.path)

    @staticmethod
    def _read(file: Path) -> dict[str, Any]:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # none there, or a stopped call left it damaged
            return {}
        return content if isinstance(content, dict) else {}
