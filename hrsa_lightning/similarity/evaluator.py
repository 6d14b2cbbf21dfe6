"""What an evaluation compares with what: all pairs of representations, spread over the ranks."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hrsa_lightning.callbacks.comparing import MIN_SAMPLES, Comparer, Result, variance_shares
from hrsa_lightning.callbacks.pictures import LayerMap
from hrsa_lightning.callbacks.probing import Probing
from hrsa_lightning.callbacks.referencing import Live, ReferenceBook
from hrsa_lightning.representations.reference import Comparison

__all__ = ["ComparisonPlan", "Findings"]


class _Job(NamedTuple):
    """One pair of matrices to compare, and where its values go."""

    probes: str
    comparison: str
    where: str
    x: Tensor
    y: Tensor
    labels: Tensor | None
    key: Hashable  # of y, where the same y will come again


@dataclass
class Findings:
    """What an evaluation found, the same on all ranks.

    Attributes:
        values: By tag.
        floors: Chance or null values, by tag.
        maps: Both sides of every comparison, all layers.
        notes: What the reader has to know, and of which places it is true.
    """

    values: dict[str, float] = field(default_factory=dict)
    floors: dict[str, float] = field(default_factory=dict)
    maps: list[LayerMap] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)


class ComparisonPlan:
    """Compares live representations with those of the references.

    Args:
        name: Begins every tag.
        probing: Looks at models.
        book: Knows the references.
        metrics: See `SimilarityMonitor`, as for the others.
        num_groups: For the jackknife.
        by_label: Whether to compare within each label, too.
    """

    def __init__(
        self,
        name: str,
        probing: Probing,
        book: ReferenceBook,
        metrics: Any,
        num_groups: int,
        by_label: bool,
    ) -> None:
        self._name = name
        self._probing = probing
        self._book = book
        self._metrics = metrics
        self._num_groups = num_groups
        self._by_label = by_label
        self._comparisons: list[Comparison] = []
        self._comparer = Comparer(metrics, num_groups=num_groups)
        self._labeled: dict[str, Comparer] = {}
        self._labels: dict[str, list[str]] = {}
        self._tokens_checked = False

    def prepare(self) -> None:
        """Find what there is to compare in the current fit.

        Raises:
            ConfigError: When an arm does not exist.
            DataError: When a trace was recorded on other probes.
        """
        self._comparisons = self._book.comparisons()
        self._tokens_checked = False
        for name, probes in self._probing.probes.items():
            self._labels[name] = sorted(set(probes.labels or ()))
            num_classes = len(self._labels[name])
            if num_classes > 1:
                self._labeled[name] = Comparer(
                    self._metrics, num_classes=num_classes, num_groups=self._num_groups
                )

    @property
    def device(self) -> torch.device:
        """Where to compare: not on MPS, which lacks the float64 that the metrics need."""
        device = self._probing.device
        return torch.device("cpu") if device.type == "mps" else device

    def run(self, live: Live, step: int) -> Findings:
        """Compare the representations of all arms; every rank has to call it.

        Raises:
            ConfigError: When tokens are to be compared that two tokenizers cut differently.
            DataError: When two sides have different numbers of rows, or too few.
        """
        exchange = self._probing.observer.exchange
        found = Findings()
        with exchange.together():
            if not self._tokens_checked:
                for comparison in self._comparisons:
                    self._book.check_tokens(comparison)
                self._tokens_checked = True
            jobs = self._jobs(live, step, found)
            own = [self._work(job) for job in jobs[exchange.rank :: exchange.world_size]]
        per_rank = exchange.all(own)
        places: dict[str, list[str]] = {}
        for index, job in enumerate(jobs):
            result = per_rank[index % len(per_rank)][index // len(per_rank)]
            found.values |= {self._tag(job, key): value for key, value in result.values.items()}
            found.floors |= {self._tag(job, key): floor for key, floor in result.floors.items()}
            for note in result.notes:
                place = " of ".join(part for part in (job.where, job.comparison) if part)
                places.setdefault(note, []).append(place)
        for note, where in places.items():
            found.notes[note] = f" (at {', '.join(where)}, step {step})"
        found.values |= self._shares(live)
        return found

    def _jobs(self, live: Live, step: int, found: Findings) -> list[_Job]:
        """All pairs of matrices to compare, the same on every rank, place by place.

        Arms that are compared with the same one so come one after another, and metrics keep what
        they found of a reference while it stays the same.
        """
        by_place: dict[tuple[str, str], list[_Job]] = {}
        for comparison in self._comparisons:
            for name, arms in live.items():
                left = arms[comparison.arm]
                right = self._book.rows(comparison, name, live)
                if right is None:
                    if comparison.source == "trace":
                        found.notes[f"{comparison.of!r} has nothing for some steps"] = f" ({step})"
                    continue
                missing = [where for where in left if where not in right]
                if missing:
                    found.notes[f"{comparison.of!r} has no {', '.join(missing)}; left out"] = ""
                found.maps.append(LayerMap(self._group(name), comparison.name, left, right))
                for where in (where for where in left if where in right):
                    pairs = self._pairs(name, comparison, where, left[where], right[where])
                    by_place.setdefault((name, where), []).extend(pairs)
        return [job for jobs in by_place.values() for job in jobs]

    def _pairs(
        self, probes: str, comparison: Comparison, where: str, x: Tensor, y: Tensor
    ) -> list[_Job]:
        """The comparison over all samples, and one within each label where asked for."""
        kept = self._book.kept_under(comparison)

        def job(place: str, x: Tensor, y: Tensor, classes: Tensor | None = None) -> _Job:
            key = (probes, *kept, place) if kept else None
            return _Job(probes, comparison.name, place, x, y, classes, key)

        labels = self._probing.probes[probes].labels
        if labels is None or len(labels) != len(x):
            return [job(where, x, y)]
        classes = self._labels[probes]
        numbers = torch.tensor([classes.index(label) for label in labels])
        jobs = [job(where, x, y, numbers if len(classes) > 1 else None)]
        for number, label in enumerate(classes if self._by_label else ()):
            rows = (numbers == number).to(x.device)
            if int(rows.sum()) >= MIN_SAMPLES:
                jobs.append(job(f"{where}/{label}", x[rows], y[rows]))
        return jobs

    def _work(self, job: _Job) -> Result:
        x, y = job.x.to(self.device), job.y.to(self.device)
        if job.labels is None:
            return self._comparer.compare(x, y, key=job.key)
        return self._labeled[job.probes].compare(x, y, job.labels.to(self.device), job.key)

    def _shares(self, live: Live) -> dict[str, float]:
        """How much of the variance hangs on one sample or one dimension, per arm and layer."""
        return {
            "/".join(part for part in (self._group(name), metric, arm, where) if part): value
            for name, arms in live.items()
            for arm, snapshot in arms.items()
            for where, rows in snapshot.items()
            for metric, value in variance_shares(rows).items()
        }

    def _group(self, probes: str) -> str:
        return f"{self._name}.{probes}" if probes else self._name

    def _tag(self, job: _Job, metric: str) -> str:
        parts = (self._group(job.probes), metric, job.comparison, job.where)
        return "/".join(part for part in parts if part)
