"""Run models over the probe sets and hand out the representations, gathered over ranks."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hrsa_lightning.representations.capture import (
    CaptureOptions,
    Snapshot,
    capture_batch,
    is_sharded,
)
from hrsa_lightning.representations.exchange import Exchange
from hrsa_lightning.representations.layers import LayerSelection
from hrsa_lightning.representations.probes import ProbeSet, Tokenizer

__all__ = ["Observer", "Shares"]

# Probe set to short layer name to batch number to the rows of that batch.
Shares = dict[str, dict[str, dict[int, Tensor]]]


class Observer:
    """The probe sets and the way to look at a model through them.

    Args:
        probes: Probe sets by name.
        options: Forward call, pooling and mask.
        exchange: How the shards of the ranks come together.
        store_on: Where pooled rows are kept.
    """

    def __init__(
        self,
        probes: Mapping[str, ProbeSet],
        options: CaptureOptions,
        exchange: Exchange,
        store_on: torch.device,
    ) -> None:
        self.probes = dict(probes)
        self.exchange = exchange
        self._options = options
        self._store_on = store_on

    def make_ready(self, owner: str, tokenize: Tokenizer | None) -> None:
        """Tokenize what this rank will look at, so that no forward pass has to wait for it."""
        for probes in self.probes.values():
            for _ in probes.batches(self._rounds(probes), owner, tokenize):
                pass

    def look(
        self,
        module: nn.Module,
        layers: LayerSelection,
        device: torch.device,
        owner: str,
        tokenize: Tokenizer | None,
    ) -> Shares:
        """This rank's share of one model's representations; no collectives but the model's own.

        A model whose weights are spread over ranks needs all of them in every forward pass. So a
        rank that is out of batches keeps the others company with the first batch, whose rows it
        drops, and one that cannot use what a layer returned says so when all passes are over.

        Args:
            module: The model, in evaluation mode.
            layers: Which of its layers.
            device: Where it is.
            owner: Whose tokens the text probes become.
            tokenize: Turns texts into a batch.
        """
        sharded = is_sharded(module)
        failure: Exception | None = None
        shares: Shares = {}
        for name, probes in self.probes.items():
            own = self._own(probes)
            rounds = self._rounds(probes) if sharded else own
            share: dict[str, dict[int, Tensor]] = {layer: {} for layer in layers.names}
            for turn, batch in enumerate(probes.batches(rounds, owner, tokenize)):
                try:
                    snapshot = capture_batch(
                        module, batch, layers, self._options, device=device, store_on=self._store_on
                    )
                except Exception as error:
                    if not sharded:
                        raise
                    failure = failure or error
                    continue
                for layer, rows in snapshot.items() if turn < len(own) else ():
                    share[layer][own[turn]] = rows
            shares[name] = share
        if failure is not None:
            raise failure
        return shares

    def gather(self, shares: Shares) -> dict[str, Snapshot]:
        """The whole representations, the same on every rank.

        Every rank has to call it with the same probe sets and layers.
        """
        return {
            name: {
                layer: self.exchange.rows(rows, self.probes[name].order)
                for layer, rows in share.items()
            }
            for name, share in shares.items()
        }

    def _own(self, probes: ProbeSet) -> list[int]:
        """Numbers of the batches of this rank."""
        exchange = self.exchange
        return [n for n in probes.order if n % exchange.num_shards == exchange.shard]

    def _rounds(self, probes: ProbeSet) -> list[int]:
        """The same, made as many as those of the rank that has the most."""
        own = self._own(probes)
        return own + [0] * (-(-len(probes.order) // self.exchange.num_shards) - len(own))
