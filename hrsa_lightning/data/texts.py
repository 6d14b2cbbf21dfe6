"""Probe texts: the fixed inputs on which similarity is measured. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path

from hrsa_lightning.data.problems import Problems
from hrsa_lightning.data.records import check_exists, check_text
from hrsa_lightning.errors import DataError
from hrsa_lightning.io import read_json_lines


@dataclass(frozen=True, slots=True)
class ProbeText:
    """One probe: its id is unique in the set; its label is optional."""

    id: str
    text: str
    label: str | None = None


def read_texts(path: str | Path) -> list[ProbeText]:
    """Read probe texts.

    Args:
        path: A `.jsonl` file of objects with `text` and optional `id` and `label`, or any other
            file as plain text, one probe a line. The default id is the number of the line.

    Returns:
        The probes in the order of the file; blank lines are passed over.

    Raises:
        DataError: One error that names every bad line, a repeated id, or a file without texts.
    """
    file = Path(path)
    problems = Problems()
    try:
        check_exists(file)
    except DataError as error:
        raise DataError(f"{file}: {error}") from None
    probes = _read_json(file, problems) if file.suffix == ".jsonl" else _read_plain(file, problems)
    first_line: dict[str, int] = {}
    for number, probe in probes:
        if first_line.setdefault(probe.id, number) != number:
            problems.add(
                f"{file}:{number}",
                f'id "{probe.id}" is already that of line {first_line[probe.id]}',
            )
    problems.raise_if_any()
    if not probes:
        raise DataError(f"{file}: no texts in the file")
    return [probe for _, probe in probes]


def _read_json(file: Path, problems: Problems) -> list[tuple[int, ProbeText]]:
    probes = []
    for number, _, _, record in read_json_lines(file, problems.add):
        if not isinstance(record, dict) or "text" not in record:
            problems.add(f"{file}:{number}", 'expected an object with "text"')
            continue
        try:
            text = check_text(record["text"], "text")
        except DataError as error:
            problems.add(f"{file}:{number}", str(error))
            continue
        label = record.get("label")
        probes.append(
            (
                number,
                ProbeText(
                    id=str(record.get("id", number)),
                    text=text,
                    label=None if label is None else str(label),
                ),
            )
        )
    return probes


def _read_plain(file: Path, problems: Problems) -> list[tuple[int, ProbeText]]:
    probes = []
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                problems.add(f"{file}:{number}", f"not UTF-8 at byte {error.start + 1} of the line")
                continue
            if text:
                probes.append((number, ProbeText(id=str(number), text=text)))
    return probes
