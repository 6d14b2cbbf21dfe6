import pytest
import torch
from torch import nn

from hrsa_lightning.errors import ConfigError
from hrsa_lightning.similarity.layers import clean_name, select_layers


@pytest.fixture
def net():
    block = lambda: nn.ModuleDict({"attn": nn.Linear(2, 2), "mlp": nn.Linear(2, 2)})  # noqa: E731
    stage = lambda: nn.ModuleDict({"blocks": nn.ModuleList([block(), block()])})  # noqa: E731
    return nn.ModuleDict(
        {
            "stem": nn.Linear(2, 2),
            "stages": nn.ModuleList([stage(), stage()]),
            "head": nn.Linear(2, 2),
        }
    )


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["stem", "head"], ["stem", "head"]),
        (["stages.*"], ["stage_0", "stage_1"]),
        (["stages.*.blocks.1"], ["stage_0", "stage_1"]),
        (["stages.*.blocks.[01]"], [f"stage_{s}.block_{b}" for s in (0, 1) for b in (0, 1)]),
        (["stages.0.**.attn"], ["stages.0.blocks.0.attn", "stages.0.blocks.1.attn"]),
        (["**.blocks.0"], ["stages.0.blocks.0", "stages.1.blocks.0"]),
        (["s*"], ["stem", "stages"]),
        (["stages.?.blocks.0.*"], ["stage_0.attn", "stage_0.mlp", "stage_1.attn", "stage_1.mlp"]),
        (["head", "h*"], ["head"]),
    ],
)
def test_patterns_and_short_names(net, patterns, names):
    assert list(select_layers(net, patterns).modules) == names


def test_short_names_that_collide_are_written_in_full(net):
    names = select_layers(net, ["stages.0.blocks.*", "stages.1.blocks.*"]).names
    assert names == [f"stages.{s}.blocks.{b}" for s in (0, 1) for b in (0, 1)]


def test_deep_names_of_peft_are_short():
    net = nn.ModuleDict({"backbone": nn.ModuleDict({"base_model": nn.ModuleDict()})})
    net["backbone"]["base_model"]["layers"] = nn.ModuleList([nn.Linear(1, 1) for _ in range(2)])
    assert select_layers(net, ["**.layers.*", "output"]).names == ["layer_0", "layer_1", "output"]


def test_outputs_keep_their_key(net):
    selection = select_layers(net, ["output", "output.latent"])
    assert selection.outputs == {"output": None, "output.latent": "latent"}


def test_relative_patterns_find_a_bare_backbone():
    bare = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(1, 1)])})
    selection = select_layers(bare, ["backbone.model.layers.*"], relative=True)
    assert list(selection.modules) == ["layer_0"]
    with pytest.raises(ConfigError, match="reference 'x'"):
        select_layers(bare, ["backbone.model.blocks.*"], relative=True, owner="reference 'x'")


def test_an_unknown_pattern_answers_with_the_nearest_names(net):
    with pytest.raises(ConfigError, match=r"'stagse\.0'.*nearest names: .*stages\.0"):
        select_layers(net, ["stagse.0"])


def test_wrappers_do_not_show_in_names():
    net = nn.ModuleDict({"encoder": torch.compile(nn.Sequential(nn.Linear(1, 1)), backend="eager")})
    assert list(select_layers(net, ["encoder.0"]).modules) == ["encoder.0"]
    assert clean_name("a._fsdp_wrapped_module.b._checkpoint_wrapped_module.c") == "a.b.c"
