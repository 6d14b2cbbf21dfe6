import json

import numpy as np
import pytest

from hrsa_lightning.errors import BackboneError, ConfigError
from hrsa_lightning.models.embedder import EmbeddingModel
from hrsa_lightning.runs.encoder import EncoderOptions, find_model, find_models
from tests.evaluate.runs import make_run
from tests.tiny import make_backbone

QUERIES = ["river stone", ("Find it", "green cloud"), ("Look up", "seven"), ("Find it", "paper")]
PASSAGES = ["window table", "river", "a longer passage about green paper and a letter"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "backbones").mkdir()
    return make_run(folder / "one", folder / "backbones")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return make_backbone(tmp_path_factory.mktemp("backbones") / "tiny")


def test_an_arm_embeds_as_its_module_does(run):
    encoder = find_model(f"{run}:rlvr").load()
    model = EmbeddingModel.from_pretrained(
        run.parent / "backbones" / "rlvr", adapter=run / "adapters" / "rlvr"
    )
    np.testing.assert_allclose(
        encoder.encode_queries(QUERIES), model.embed(QUERIES, max_length=48), atol=1e-6
    )
    np.testing.assert_allclose(
        encoder.encode_passages(PASSAGES), model.embed(PASSAGES, max_length=48), atol=1e-6
    )
    short = find_model(f"{run}:rlvr").load(EncoderOptions(max_length=2))
    expected = model.embed(PASSAGES, max_length=2)
    np.testing.assert_allclose(short.encode_passages(PASSAGES), expected, atol=1e-6)


def test_a_fully_tuned_arm_is_its_own_backbone(run, backbone, tmp_path):
    whole = tmp_path / "run"
    text = (run / "config.yaml").read_text()
    begin, end = text.index("  lora:\n"), text.index("data:\n")
    whole.mkdir()
    (whole / "config.yaml").write_text(text[:begin] + "  lora: null\n" + text[end:])
    model = EmbeddingModel.from_pretrained(backbone)
    model.save_adapter(whole / "adapters" / "base")
    encoder = find_model(f"{whole}:base").load()
    np.testing.assert_allclose(
        encoder.encode_queries(QUERIES), model.embed(QUERIES, max_length=48), atol=1e-6
    )


def test_a_backbone_is_pooled_as_recipes_do(backbone, tmp_path):
    encoder = find_model(str(backbone)).load()
    expected = EmbeddingModel.from_pretrained(backbone).embed(PASSAGES)
    np.testing.assert_allclose(encoder.encode_passages(PASSAGES), expected, atol=1e-6)
    causal = EmbeddingModel.from_pretrained(backbone, attention="causal")
    causal.save_adapter(tmp_path / "causal")
    encoder = find_model(str(tmp_path / "causal")).load()
    np.testing.assert_allclose(encoder.encode_passages(PASSAGES), causal.embed(PASSAGES), atol=1e-6)


def test_sentence_transformers_get_the_instruction_as_prompt(backbone, tmp_path):
    st = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer import modules

    transformer = modules.Transformer(str(backbone))
    pooling = modules.Pooling(transformer.get_embedding_dimension(), "mean", include_prompt=False)
    model = st.SentenceTransformer(modules=[transformer, pooling], device="cpu")
    model.prompts = {"query": "ask: ", "document": "text: "}
    model.save_pretrained(str(tmp_path / "st"))
    reference = find_model(str(tmp_path / "st"))
    assert reference.packaged
    encoder = reference.load(EncoderOptions(batch_size=2))
    prompts = ["ask: ", *(f"Instruct: {q[0]}\nQuery: " for q in QUERIES[1:])]
    contents = [QUERIES[0], *(q[1] for q in QUERIES[1:])]
    expected = [
        model.encode([text], prompt=prompt)[0]
        for text, prompt in zip(contents, prompts, strict=True)
    ]
    np.testing.assert_allclose(encoder.encode_queries(QUERIES), expected, atol=1e-5)
    expected = model.encode(PASSAGES, prompt="text: ")
    np.testing.assert_allclose(encoder.encode_passages(PASSAGES), expected, atol=1e-5)


def test_a_run_stands_for_its_arms(run):
    assert [model.name for model in find_models(str(run))] == [f"{run}:base", f"{run}:rlvr"]
    assert not find_models("embedded:tiny/base")[0].packaged
    (on_hub,) = find_models("Qwen/Qwen3-Embedding-0.6B@v1")
    assert on_hub.packaged
    assert (on_hub.source.backbone, on_hub.source.revision) == ("Qwen/Qwen3-Embedding-0.6B", "v1")


def test_mistakes_are_named(run, tmp_path):
    with pytest.raises(ConfigError, match=r"has several arms, name one of them: .*:base, .*:rlvr"):
        find_model(str(run))
    with pytest.raises(ConfigError, match=r"no arm 'rlv'. Did you mean 'rlvr'\?"):
        find_models(f"{run}:rlv")
    with pytest.raises(BackboneError, match="no such folder"):
        find_models("./missing")
    with pytest.raises(BackboneError, match=r"neither a run .* nor a model"):
        find_models(str(tmp_path))
    with pytest.raises(BackboneError, match="not shipped"):
        find_models("embedded:tiny/huge")
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    with pytest.raises(
        ConfigError, match="the run is not finished, it has no weights of arm 'base'"
    ):
        find_models(str(tmp_path))


@pytest.mark.filterwarnings("ignore")  # what a loader warns of before it fails
def test_a_model_that_cannot_be_loaded_is_one_line(tmp_path):
    pytest.importorskip("sentence_transformers")
    (tmp_path / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": ""}]))
    with pytest.raises(BackboneError, match="cannot be loaded: ") as caught:
        find_model(str(tmp_path)).load()
    assert "\n" not in str(caught.value)


def test_identity_follows_weights_and_settings(run, backbone):
    first = find_model(f"{run}:rlvr")
    identities = {
        first.identity(),
        find_model(f"{run}:base").identity(),
        first.identity(EncoderOptions(max_length=9)),
        first.identity(EncoderOptions(dtype="bfloat16")),
        find_model(str(backbone)).identity(),
    }
    assert first.load().identity in identities
    (run / "adapters" / "rlvr" / "adapter_model.safetensors").touch()
    identities.add(first.identity())
    assert len(identities) == 6
    assert first.identity() == first.identity(EncoderOptions(batch_size=7, device="cpu"))
