"""Run models over the probe sets and hand out the representations, gathered over ranks."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hrsa_lightning.representations.capture import CaptureOptions, Snapshot, capture, is_sharded
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

    def look(
        self,
        module: nn.Module,
        layers: LayerSelection,
        device: torch.device,
        owner: str,
        tokenize: Tokenizer | None,
    ) -> Shares:
        """This rank's share of one model's representations; no collectives but the model's own.

        Args:
            module: The model, in evaluation mode.
            layers: Which of its layers.
            device: Where it is.
            owner: Whose tokens the text probes become.
            tokenize: Turns texts into a batch.
        """
        return {
            name: self._look_at(probes, module, layers, device, owner, tokenize)
            for name, probes in self.probes.items()
        }

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

    def _look_at(
        self,
        probes: ProbeSet,
        module: nn.Module,
        layers: LayerSelection,
        device: torch.device,
        owner: str,
        tokenize: Tokenizer | None,
    ) -> dict[str, dict[int, Tensor]]:
        num_shards = self.exchange.num_shards
        numbers = [n for n in probes.order if n % num_shards == self.exchange.shard]
        most = -(-len(probes.order) // num_shards)
        # A model whose weights are spread over ranks needs all of them in every forward pass: a
        # rank that is out of batches keeps the others company with the first one.
        company = most - len(numbers) if is_sharded(module) else 0
        batches = probes.batches([*numbers, *[0] * company], owner, tokenize)
        shares: dict[str, dict[int, Tensor]] = {layer: {} for layer in layers.names}
        snapshots = capture(
            module, batches, layers, self._options, device=device, store_on=self._store_on
        )
        for position, snapshot in enumerate(snapshots):
            if position < len(numbers):
                for layer, rows in snapshot.items():
                    shares[layer][numbers[position]] = rows
        return shares
