"""Looks up the rows that a live model is compared with, running frozen models once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hrsa_lightning.callbacks.probing import Probing
from hrsa_lightning.callbacks.store import ReferenceStore
from hrsa_lightning.errors import ConfigError
from hrsa_lightning.representations.capture import Snapshot
from hrsa_lightning.representations.layers import LayerSelection, select_layers
from hrsa_lightning.representations.reference import Comparison, FrozenModel, References
from hrsa_lightning.representations.trace import Recording

__all__ = ["INITIAL", "Live", "ReferenceBook"]

INITIAL = "initial"
Live = dict[str, dict[str, Snapshot]]


class ReferenceBook:
    """The references of a monitor and what is kept of them.

    Args:
        references: What the user asked for.
        probing: Looks at models.
        layers: Layers of the reference where it names them otherwise than the live model.

    Attributes:
        lost: Why the representations of the start cannot be had; empty when they can.
    """

    def __init__(
        self, references: References, probing: Probing, layers: Sequence[str] | None
    ) -> None:
        self._references = references
        self._probing = probing
        self._layers = layers
        self._store = ReferenceStore()
        self._recordings: dict[str, Recording | None] = {}
        self._seen: dict[str, str] = {}
        self.lost = ""

    def comparisons(self) -> list[Comparison]:
        """All comparisons of the arms of the current fit.

        Raises:
            ConfigError: When an arm does not exist.
            DataError: When a trace was recorded on other probes.
        """
        for trace in self._references.traces.values():
            trace.check_probes(self._fingerprints())
            for arm in self._probing.modules:
                trace.arm_for(arm)
        return self._references.comparisons(list(self._probing.modules))

    def open(self, folder: Path | None, prefix: str, restored: dict[str, Any]) -> None:
        """Start to keep representations, in files if there is a folder.

        Args:
            folder: Where files go; `None` keeps tensors in memory.
            prefix: Begins the file names.
            restored: What `state` returned before a restart.
        """
        before, seen = self._store, self._seen
        self._store, self._seen = ReferenceStore(folder, prefix), self._fingerprints()
        for name in self._references.frozen if seen == self._seen else ():
            self._store.adopt(before, name)
        self.lost = ""
        if restored.get(INITIAL) is not None:
            if restored["fingerprints"] != self._seen:
                self.lost = "the probes are not those of before the restart"
            elif not self._store.restore(INITIAL, restored[INITIAL]):
                self.lost = f"{restored[INITIAL]} is gone"

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to hold: the start cannot be computed again."""
        initial = self._store.state(INITIAL)
        return {} if initial is None else {INITIAL: initial, "fingerprints": self._seen}

    def fill(self, live: Live, step: int, *, starts: bool) -> None:
        """Keep what is still missing: the start, the frozen models, the recorded step.

        Args:
            live: Representations of the arms now.
            step: Current step.
            starts: Whether this is the first evaluation of the fit.
        """
        exchange = self._probing.observer.exchange
        writes = exchange.rank == 0
        with exchange.together():
            if self._references.initial and INITIAL not in self._store and not self.lost:
                if starts:
                    self._store.put(INITIAL, live, write=writes)
                else:
                    self.lost = "the evaluation before the first step failed"
        for name, model in self._references.frozen.items():
            if name not in self._store:
                snapshots = self._run(name, model)
                with exchange.together():
                    self._store.put(name, snapshots, write=writes)
        with exchange.together():
            self._recordings = {
                name: trace.at(step) for name, trace in self._references.traces.items()
            }

    def rows(self, comparison: Comparison, probes: str, live: Live) -> Snapshot | None:
        """Layer to rows of the reference of a comparison, `None` when there are none now."""
        if comparison.source == "arm":
            return live[probes][comparison.of]
        if comparison.source == "trace":
            recording = self._recordings[comparison.of]
            if recording is None:
                return None
            trace = self._references.traces[comparison.of]
            return recording[probes][trace.arm_for(comparison.arm)]
        return (
            self._store.snapshot(comparison.of, probes, comparison.arm)
            or self._store.snapshot(comparison.of, probes, "")
            or None
        )

    def kept_under(self, comparison: Comparison) -> tuple[str, ...] | None:
        """Names the representations that `rows` gives, where they stay the same from now on.

        Arms that are compared with one frozen model share them.
        """
        if comparison.source == "initial":
            return comparison.source, comparison.arm
        if comparison.source == "frozen":
            per_arm = self._references.frozen[comparison.of].per_arm
            return comparison.source, comparison.of, *([comparison.arm] if per_arm else [])
        return None

    def check_tokens(self, comparison: Comparison) -> None:
        """Refuse to compare token by token what two tokenizers cut differently.

        Where only one side has token ids, the number of rows has to tell.

        Raises:
            ConfigError: When both sides have token ids and they differ.
        """
        if not self._probing.compares_tokens or comparison.source not in ("arm", "frozen"):
            return
        frozen = comparison.source == "frozen"
        other = _owner(comparison.of) if frozen else comparison.of
        text = self._probing.text_cut_differently(comparison.arm, other)
        if text is not None:
            sides = comparison.name.replace("_vs_", " and ") or f"the module and {comparison.of}"
            raise ConfigError(
                f"pooling: 'none' compares token by token, and the tokenizers of {sides} cut "
                f"{text[:40]!r} differently; choose another pooling, such as 'mean'"
            )

    def _fingerprints(self) -> dict[str, str]:
        return {name: probes.fingerprint for name, probes in self._probing.probes.items()}

    def _run(self, name: str, model: FrozenModel) -> Live:
        """One forward pass of a frozen model, or of each arm with the weights of a file."""
        probing = self._probing
        arms = list(probing.modules) if model.per_arm else [next(iter(probing.modules))]
        found: dict[str, dict[str, Snapshot]] = {}
        for arm in arms:
            live = probing.modules[arm]
            prefix = f"{probing.arms}.{arm}." if probing.arms else ""
            with (
                probing.observer.exchange.together(),
                model.opened(live, probing.device, prefix) as module,
            ):
                layers = self._layers_of(module, name, arm)
                own = model.tokenizer(probing.max_length)
                owner = _owner(name) if own else arm
                shares = probing.look_at(module, layers, owner, own, live)
            found[arm if model.per_arm else ""] = probing.observer.gather(shares)
        return {
            probes: {arm: snapshots[probes] for arm, snapshots in found.items()}
            for probes in probing.probes
        }

    def _layers_of(self, module: Any, name: str, arm: str) -> LayerSelection:
        """The layers of a reference, under the names that they have in the live model."""
        owner = f"reference {name!r}"
        if self._layers is None:
            return select_layers(module, self._probing.patterns, relative=True, owner=owner)
        found = select_layers(module, self._layers, owner=owner)
        live = self._probing.layers[arm]
        if len(found.modules) != len(live.modules) or len(found.outputs) != len(live.outputs):
            raise ConfigError(
                f"reference_layers: {len(found.names)} layers of {owner} for {len(live.names)} "
                "layers of the live model; name one for each"
            )
        return LayerSelection(
            dict(zip(live.modules, found.modules.values(), strict=True)),
            dict(zip(live.outputs, found.outputs.values(), strict=True)),
        )


def _owner(reference: str) -> str:
    """Whose tokens those of a reference with its own tokenizer are."""
    return f"reference {reference}"
