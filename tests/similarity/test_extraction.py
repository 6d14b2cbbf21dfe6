from collections import OrderedDict, namedtuple
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from transformers.modeling_outputs import BaseModelOutput

from hrsa_lightning.errors import DataError
from hrsa_lightning.io.distributed import Ranks
from hrsa_lightning.similarity import preserve_training_state
from hrsa_lightning.similarity.batches import activation_of, call_module
from hrsa_lightning.similarity.extraction import Extractor

CPU = torch.device("cpu")


def run(module, batch, patterns, context=nullcontext, **options):
    extractor = Extractor([batch], patterns, **options)
    extractor.prepare({"": module}, ranks=Ranks(1, 0), device=CPU, context=context)
    with preserve_training_state(module):
        return extractor.extract()[""][""]


@dataclass
class Record:
    x: torch.Tensor


@dataclass(slots=True)
class Slots:
    x: torch.Tensor


class Returns(nn.Module):
    """Wraps the result of a linear layer in another form."""

    def __init__(self, form):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.form = form

    def forward(self, x):
        return self.form(self.linear(x))


Pair = namedtuple("Pair", "loss states")


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        (lambda out: out, "output"),
        (lambda out: (out, None), "output"),
        (lambda out: [torch.tensor(0.1), out], "output"),
        (lambda out: Pair(out.mean(), out), "output"),
        (lambda out: {"logits": out, "loss": out.mean()}, "output"),
        (lambda out: {"other": out + 1, "last_hidden_state": out}, "output"),
        (lambda out: OrderedDict(first=out + 1, latent=out), "output.latent"),
        (lambda out: BaseModelOutput(last_hidden_state=out), "output"),
        (lambda out: Record(out), "output"),
        (lambda out: Record(out), "output.x"),
        (lambda out: Slots(out), "output"),
        (lambda out: Slots(out), "output.x"),
        (lambda out: {"out": {"aux": Record(out + 1), "main": [out]}}, "output.out.main.0"),
        (lambda out: (None, (out, out + 1)), "output"),
        (lambda out: torch.distributions.Normal(out, 1.0), "output.loc"),
        (lambda out: [*out], "output"),
        (lambda out: [{"scores": row} for row in out], "output.scores"),
        (
            lambda out: torch.nested.nested_tensor([*out.unsqueeze(1)], layout=torch.jagged),
            "output",
        ),
        # Ragged: as many tokens as the number of the sample, all equal, so that the mean is known.
        (lambda out: [row.repeat(n + 1, 1) for n, row in enumerate(out)], "output"),
        (lambda out: pack_sequence([row.repeat(5 - n, 1) for n, row in enumerate(out)]), "output"),
        (
            lambda out: [row.reshape(2, 1, 1).repeat(1, n + 1, 3) for n, row in enumerate(out)],
            "output",
        ),
    ],
)
def test_outputs_of_any_form(form, pattern):
    module, x = Returns(form), torch.randn(4, 3)
    torch.testing.assert_close(run(module, x, [pattern])[pattern], module.linear(x).detach())


def test_a_sample_without_anything_is_a_row_of_zeros():
    module = Returns(lambda out: [out[:n] for n in range(4)])
    found = run(module, torch.randn(4, 3), ["output"])["output"]
    assert found.shape == (4, 2)
    assert found[0].tolist() == [0.0, 0.0]
    with pytest.raises(DataError, match=r"a list of mappings; choose one of output.boxes"):
        run(Returns(lambda out: [{"boxes": row} for row in out]), torch.randn(4, 3), ["output"])


def test_signals_and_images_by_where_their_layers_put_channels():
    signals = nn.Sequential(nn.Conv1d(2, 6, 3), nn.ReLU(inplace=True), nn.MaxPool1d(2))
    x = torch.randn(4, 2, 12)
    found = run(signals, x, ["0", "1", "2", "output"])
    torch.testing.assert_close(found["0"], signals[0](x).mean(2).detach())
    torch.testing.assert_close(found["1"], signals[:2](x).mean(2).detach())
    assert found["2"].shape == found["output"].shape == (4, 6)
    tokens = nn.Sequential(nn.Linear(2, 6), nn.LayerNorm(6))
    x = torch.randn(4, 12, 2)
    torch.testing.assert_close(run(tokens, x, ["output"])["output"], tokens(x).mean(1).detach())
    images = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU())
    x = torch.randn(4, 2, 9, 9)
    torch.testing.assert_close(run(images, x, ["1"])["1"], images(x).mean((2, 3)).detach())
    last = nn.Sequential(nn.LayerNorm(2), nn.Linear(2, 6))
    x = torch.randn(4, 9, 9, 2)
    torch.testing.assert_close(run(last, x, ["1"])["1"], last(x).mean((1, 2)).detach())


def test_a_forward_pass_in_place_changes_no_probe():
    extractor = Extractor([torch.ones(4, 3)], ["output"])
    extractor.prepare({"": nn.Identity()}, ranks=Ranks(1, 0), device=CPU)
    extractor._forward = lambda _, batch: batch.mul_(2)
    assert [float(extractor.extract()[""][""]["output"].mean()) for _ in range(2)] == [2.0, 2.0]


def test_layers_of_any_form_and_hooks_are_gone():
    module = nn.Sequential(Returns(lambda out: (out, {"cache": None})), Returns(lambda t: t[0]))
    module[1].linear = nn.Identity()
    x = torch.randn(4, 3)
    snapshot = run(module, x, ["0", "0.linear"])
    assert torch.equal(snapshot["0"], snapshot["0.linear"])
    assert not any(part._forward_hooks for part in module.modules())


def test_a_layer_is_seen_as_it_was_though_the_next_one_works_in_place():
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True))
    x = torch.randn(5, 3)
    snapshot = run(module, x, ["0", "output"], pooling="flatten")
    torch.testing.assert_close(snapshot["0"], module[0](x).detach())
    assert bool((snapshot["0"] < 0).any())
    assert bool((snapshot["output"] >= 0).all())


def test_pooling_is_in_full_precision_under_autocast():
    def autocast():
        return torch.autocast("cpu", dtype=torch.bfloat16)

    batch = {"input_ids": torch.randint(9, (3, 50)), "attention_mask": torch.ones(3, 50)}
    module = Tokens()
    found = run(module, batch, ["embed"], context=autocast)["embed"]
    torch.testing.assert_close(found, module.embed(batch["input_ids"]).mean(1).detach())


def test_of_a_layer_that_is_called_several_times_the_last_call_counts():
    module = nn.ModuleDict({"shared": nn.Linear(3, 3)})

    def forward(net, x):
        return net["shared"](net["shared"](x[0]).expand(4, 3) + x)

    x = torch.randn(4, 3)  # the first call has one row for four samples
    found = run(module, x, ["shared"], forward=forward)["shared"]
    torch.testing.assert_close(found, forward(module, x).detach())


def test_what_cannot_be_pooled_is_told_when_the_forward_pass_is_over():
    passes = []

    def forward(net, x):
        out = net(x)
        passes.append(1)
        return out

    def pooling(activation, mask):
        raise RuntimeError("on purpose")

    with pytest.raises(DataError, match="RuntimeError: on purpose"):
        run(nn.Linear(3, 2), torch.randn(4, 3), ["output"], forward=forward, pooling=pooling)
    net = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(DataError, match="RuntimeError: on purpose"):
        run(net, torch.randn(4, 3), ["0"], forward=forward, pooling=pooling)
    assert passes == [1, 1]


def test_hooks_are_gone_after_an_error():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x):
            self.linear(x)
            raise RuntimeError("on purpose")

    module = Broken()
    with pytest.raises(DataError, match="RuntimeError: on purpose"):
        run(module, torch.randn(4, 3), ["linear"])
    assert not module.linear._forward_hooks


class Keywords(nn.Module):
    def forward(self, input_ids, attention_mask=None):
        return input_ids.float().unsqueeze(1)


class Whole(nn.Module):
    def forward(self, batch):
        return batch["pixels"]


class Features(nn.Module):
    """As sentence-transformers calls its models."""

    def forward(self, input, **kwargs):
        assert kwargs == {}
        return input


class TwoInputs(nn.Module):
    def forward(self, first, second, flag=None):
        assert flag is None
        return first + second


def test_the_modules_own_call():
    ids = torch.arange(3)
    batch = {"input_ids": ids, "attention_mask": torch.ones(3), "labels": ids}
    assert call_module(Keywords(), batch).shape == (3, 1)
    assert torch.equal(call_module(Whole(), {"pixels": ids}), ids)
    assert torch.equal(call_module(TwoInputs(), (ids, ids, ids)), 2 * ids)
    assert torch.equal(call_module(nn.Identity(), [ids, ids]), ids)
    features = {"input_ids": ids}
    assert call_module(Features(), features) is features
    pair = SimpleNamespace(first=ids, second=ids, to=None)
    assert torch.equal(call_module(TwoInputs(), pair), 2 * ids)


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 4)

    def forward(self, input_ids, attention_mask):
        return self.embed(input_ids)


def test_the_mask_of_a_batch_is_found_and_can_be_told():
    module = Tokens()
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    batch = {
        "input_ids": ids,
        "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
        "pool_mask": torch.tensor([[0, 1, 1], [0, 0, 0]]),
    }
    states = module.embed(ids).detach()
    found = run(module, batch, ["embed"])["embed"]
    # The second text has no token to pool, so all that it has are.
    torch.testing.assert_close(found, torch.stack([states[0, 1:].mean(0), states[1, :2].mean(0)]))
    found = run(module, batch, ["embed"], mask="attention_mask")["embed"]
    torch.testing.assert_close(found[0], states[0].mean(0))
    found = run(module, batch, ["embed"], exclude_first_token=True)["embed"]
    torch.testing.assert_close(found, torch.stack([states[0, 2], states[1, 1]]))
    found = run(module, batch, ["embed"], pooling={"emb*": "none"})["embed"]
    assert found.shape == (4, 4)


def test_two_results_are_no_samples():
    """Forecasts and backcasts of windows that the step cuts out of the batch."""
    found = activation_of((torch.ones(6, 3), torch.ones(6, 2)), None, {2, 24})
    assert isinstance(found, torch.Tensor)
    assert found.shape == (6, 3)
    images = [torch.ones(3, 9, 9 + n) for n in range(8)]
    assert isinstance(activation_of(images, None, {8}), list)


def test_the_inputs_of_inputs_and_labels_know_their_padding():
    module = Tokens()
    inputs = {"input_ids": torch.tensor([[1, 2], [4, 0]]), "attention_mask": torch.eye(2).cumsum(1)}
    found = [run(module, batch, ["embed"])["embed"] for batch in (inputs, (inputs, torch.ones(2)))]
    assert torch.equal(*found)
    assert torch.equal(found[0][1], module.embed.weight[0].detach())


def test_numbers_of_batches_are_no_graphs():
    """An experiment of each cell, and no graph of each node, which come in order."""
    batch = {"x": torch.randn(4, 3), "batch": torch.tensor([1, 0, 1, 0])}
    found = run(nn.Linear(3, 2), batch, ["output"], forward=lambda net, b: net(b["x"]))
    assert len(found["output"]) == 4


def test_a_forward_of_ones_own_and_batches_of_any_kind():
    module = nn.Linear(3, 2)
    batch = Record(torch.randn(4, 3))
    found = run(module, batch, ["output"], forward=lambda net, record: net(record.x))["output"]
    torch.testing.assert_close(found, module(batch.x).detach())


def test_inputs_follow_weights_in_true_half_precision():
    module = nn.Linear(3, 2).bfloat16()
    assert run(module, torch.randn(4, 3), ["output"])["output"].dtype == torch.float32


def test_mistakes_are_named():
    unused = nn.ModuleDict({"used": nn.Linear(3, 2), "idle": nn.Linear(3, 2)})
    with pytest.raises(DataError, match="idle took no part"):
        run(unused, torch.randn(4, 3), ["idle"], forward=lambda net, x: net["used"](x))
    with pytest.raises(DataError, match=r"output\.latent.*\['logits'\]"):
        run(Returns(lambda out: {"logits": out}), torch.randn(4, 3), ["output.latent"])
    with pytest.raises(DataError, match="floating-point"):
        run(Returns(lambda out: out.argmax(1)), torch.randn(4, 3), ["output"])
    with pytest.raises(
        DataError, match=r"pooling: expected a row for each sample, got 8 of 1 .* with 4;"
    ):
        run(nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Flatten(0, 1)), torch.randn(4, 4), ["1"])
    with pytest.raises(DataError, match="at least one batch of samples, got NoneType"):
        run(nn.Identity(), None, ["output"])
