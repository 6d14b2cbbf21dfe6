import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModel, AutoTokenizer

from hrsa_lightning.errors import ConfigError
from hrsa_lightning.models import load_tokenizer
from hrsa_lightning.similarity.comparisons import comparisons_of, parse_references
from hrsa_lightning.similarity.references import CheckpointReference, PretrainedReference
from tests.tiny import make_backbone

CPU = torch.device("cpu")


def names(reference, arms):
    return [c.name for c in comparisons_of(parse_references(reference), arms)]


@pytest.mark.parametrize(
    ("reference", "arms", "expected"),
    [
        ("initial", [""], ["live_vs_initial"]),
        (["initial", nn.Identity()], [""], ["live_vs_initial", "live_vs_reference"]),
        ({"teacher": nn.Identity()}, [""], ["live_vs_teacher"]),
        ("initial", ["a", "b"], ["a_vs_initial", "b_vs_initial"]),
        ("arm:a", ["a", "b", "c"], ["b_vs_a", "c_vs_a"]),
        ("pairs", ["a", "b", "c"], ["b_vs_a", "c_vs_a", "c_vs_b"]),
        (["pairs", "arm:b"], ["a", "b", "c"], ["b_vs_a", "c_vs_a", "c_vs_b"]),
        ({"t": nn.Identity(), "u": nn.Identity()}, ["a"], ["a_vs_t", "a_vs_u"]),
        (("initial", "arm:a"), ["a", "b"], ["b_vs_a", "a_vs_initial", "b_vs_initial"]),
    ],
)
def test_comparisons_and_their_names(reference, arms, expected):
    assert names(reference, arms) == expected


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (3, "got int"),
        ([], "at least one"),
        ("./no/such/folder", "expected a folder with a config.json"),
        ("weights.ckpt", "no checkpoint file 'weights.ckpt'"),
    ],
)
def test_mistakes_are_named(reference, message):
    with pytest.raises(ConfigError, match=message):
        parse_references(reference)
    with pytest.raises(ConfigError, match="no arm 'x'; the module has a, b"):
        names("arm:x", ["a", "b"])


@pytest.mark.parametrize(
    ("reference", "arms"),
    [
        (["initial", "arm:initial"], ["initial", "b"]),
        ("pairs", ["initial", "b"]),
        ({"initial": nn.Identity()}, [""]),
        (["arm:c", {"b_vs_c": nn.Identity()}], ["a", "a_vs_b", "c"]),
        (["arm:x", {"x": nn.Identity()}], ["x", "y"]),
        (["initial", "initial"], ["x"]),
    ],
)
def test_names_that_would_stand_for_two_things_are_refused(reference, arms):
    if isinstance(reference, list) and isinstance(reference[-1], dict):
        reference = {**reference[-1], "arm": reference[0]}
    with pytest.raises(ConfigError, match=r"another name than|two comparisons are"):
        names(reference, arms)


def test_checkpoints_of_one_file_name_have_to_be_named(tmp_path):
    paths = [tmp_path / run / "last.ckpt" for run in "ab"]
    for path in paths:
        path.parent.mkdir()
        torch.save({}, path)
    assert names({"a": paths[0], "b": str(paths[1])}, ["x"]) == ["x_vs_a", "x_vs_b"]
    with pytest.raises(ConfigError, match="two are called 'last'; name them with a mapping"):
        parse_references(paths)


def test_a_pretrained_reference_keeps_its_own_rules_for_splitting_words(tmp_path):
    """AutoTokenizer would put those of the family in their place, and other tokens come out."""
    path, text = make_backbone(tmp_path / "model"), "cafe\u0301"
    tokenize = PretrainedReference("model", str(path)).tokenizer(max_length=16)
    ids = tokenize([text])["input_ids"][0].tolist()
    assert ids == load_tokenizer(path)(text).input_ids
    assert ids != AutoTokenizer.from_pretrained(path)(text).input_ids


def test_a_model_that_is_not_there_is_one_line(tmp_path):
    model = PretrainedReference("nothing", "nobody/nothing")
    with (
        pytest.raises(ConfigError, match="'nobody/nothing' cannot be loaded"),
        model.opened(nn.Identity(), CPU, ""),
    ):
        pass


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pretrained_reference_runs_in_the_dtype_of_the_live_model(tmp_path, dtype):
    model = AutoModel.from_pretrained(make_backbone(tmp_path / "model")).bfloat16()
    model.save_pretrained(tmp_path / "half")
    frozen = PretrainedReference("half", str(tmp_path / "half"))
    with frozen.opened(nn.Linear(1, 1).to(dtype), CPU, "") as opened:
        assert {parameter.dtype for parameter in opened.parameters()} == {dtype}


class Settings:
    """Something that a checkpoint may hold beside tensors."""


def test_a_checkpoint_that_would_have_to_be_executed_is_refused(tmp_path):
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": {"weight": torch.zeros(2)}, "settings": Settings()}, path)
    with (
        pytest.raises(ConfigError, match=r"holds more than tensors.*as \.safetensors"),
        CheckpointReference("model", str(path)).opened(nn.BatchNorm1d(2), CPU, ""),
    ):
        pass


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "arms.a."])
def test_a_checkpoint_takes_the_place_of_the_live_weights_and_gives_it_back(
    tmp_path, suffix, prefix
):
    live, other = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    nn.init.normal_(other.weight)
    other.running_mean.add_(1)
    before = {name: value.clone() for name, value in live.state_dict().items()}
    pointers = [p.data_ptr() for p in live.state_dict().values()]
    state = {prefix + name: value for name, value in other.state_dict().items()}
    path = tmp_path / f"model{suffix}"
    if suffix == ".ckpt":
        torch.save({"state_dict": state, "epoch": 3}, path)
    else:
        save_file(state, path)
    with CheckpointReference("model", str(path)).opened(live, CPU, prefix) as module:
        assert module is live
        assert all(torch.equal(live.state_dict()[k], v) for k, v in other.state_dict().items())
    assert all(torch.equal(live.state_dict()[k], v) for k, v in before.items())
    assert [p.data_ptr() for p in live.state_dict().values()] == pointers


def test_checkpoints_that_do_not_fit(tmp_path):
    path = tmp_path / "model.ckpt"
    torch.save({"weight": torch.zeros(3)}, path)
    with (
        pytest.raises(
            ConfigError, match=r"weight in .* has the shape \(3,\), in the live model \(2,\)"
        ),
        CheckpointReference("model", str(path)).opened(nn.BatchNorm1d(2), CPU, ""),
    ):
        pass
    torch.save({"else": torch.zeros(3)}, path)
    with (
        pytest.raises(ConfigError, match="no weight of the live model"),
        CheckpointReference("model", str(path)).opened(nn.BatchNorm1d(2), CPU, ""),
    ):
        pass
