import pytest
import torch

from hrsa_lightning.similarity.pooling import drop_first_token, pool

TOKENS = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 0, 1, 0, 1]])


def rows(method):
    """The slow way: one sample at a time, only the tokens that count."""
    kept = [sample[mask.bool()] for sample, mask in zip(TOKENS, MASK, strict=True)]
    reduce = {
        "mean": lambda t: t.mean(0, keepdim=True),
        "first": lambda t: t[:1],
        "cls": lambda t: t[:1],
        "last": lambda t: t[-1:],
        "none": lambda t: t,
    }[method]
    return torch.cat([reduce(sample) for sample in kept])


@pytest.mark.parametrize("method", ["mean", "first", "cls", "last", "none"])
def test_masked_tokens_do_not_count(method):
    spoiled = TOKENS.masked_fill(~MASK.bool().unsqueeze(2), float("nan"))
    torch.testing.assert_close(pool(spoiled, method, MASK), rows(method))


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("mean", TOKENS.mean(1)),
        ("first", TOKENS[:, 0]),
        ("last", TOKENS[:, -1]),
        ("none", TOKENS.reshape(15, 4)),
        ("flatten", TOKENS.reshape(3, 20)),
    ],
)
def test_tokens_without_mask(method, expected):
    torch.testing.assert_close(pool(TOKENS, method), expected)


def test_images_have_channels_first():
    image = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(pool(image, "mean"), image.mean((2, 3)))
    assert pool(image, "none").shape == (2 * 20, 3)
    torch.testing.assert_close(pool(image, "none")[1], image[0, :, 0, 1])
    assert pool(image, "flatten").shape == (2, 60)


def test_vectors_stay_as_they_are_and_scalars_become_columns():
    vectors = torch.randn(4, 2)
    assert torch.equal(pool(vectors, "mean"), vectors)
    assert pool(torch.randn(4), "mean").shape == (4, 1)


def test_half_precision_is_averaged_in_float32():
    tokens = torch.full((1, 4096, 1), 1.001).bfloat16()
    pooled = pool(tokens, "mean")
    assert pooled.dtype == torch.float32
    assert pooled.item() == pytest.approx(tokens[0, 0, 0].item(), abs=1e-6)


def test_a_function_gets_activation_and_mask():
    pooled = pool(
        TOKENS, lambda activation, mask: activation[:, 0] * mask.sum(1, keepdim=True), MASK
    )
    torch.testing.assert_close(pooled, TOKENS[:, 0] * 3)


def test_the_first_token_that_counts_is_dropped_but_never_the_only_one():
    mask = torch.tensor([[1, 1, 1], [0, 1, 1], [0, 0, 1]])
    assert drop_first_token(mask).int().tolist() == [[0, 1, 1], [0, 0, 1], [0, 0, 1]]


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="pooling: expected none, mean"):
        pool(TOKENS, "max")
    with pytest.raises(ValueError, match=r"\(3, 5\).*got \(3, 4\)"):
        pool(TOKENS, "mean", MASK[:, :4])
    with pytest.raises(ValueError, match="no token"):
        pool(TOKENS, "mean", torch.zeros(3, 5))
