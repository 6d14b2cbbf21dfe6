"""Batches and formulas for the tests of losses: everything slow, in float64, in one process."""

import torch

QUERIES, GROUP, FEATURES = 8, 3, 6


def make_batch(seed=0):
    """Queries, passages, and few different ids, so that duplicates are everywhere on every rank."""
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(QUERIES, FEATURES, generator=generator)
    passages = torch.randn(QUERIES, GROUP, FEATURES, generator=generator)
    passage_ids = torch.randint(0, 7, (QUERIES, GROUP), generator=generator)
    query_ids = torch.randint(0, 4, (QUERIES,), generator=generator)
    return queries, passages, passage_ids, query_ids


def cosine(x, y):
    x, y = x.double(), y.double()
    return (x @ y) / (x @ x).sqrt() / (y @ y).sqrt()


def answers(i, owner, place, passage_ids, query_ids):
    """Whether passage (owner, place) is known to answer query i."""
    if passage_ids is not None and passage_ids[owner, place] == passage_ids[i, 0]:
        return True
    return query_ids is not None and place == 0 and query_ids[owner] == query_ids[i]


def share(positive, negatives, temperature, margin=None, hardness=0.0, times=1):
    """Negative log share of the positive cosine, `times` in the sum, among weighted negatives."""
    top = torch.exp(positive / temperature)
    total = times * top
    for negative in negatives:
        if margin is not None and negative > positive + margin:
            continue
        weight = torch.exp(hardness * negative.detach())
        total = total + weight * torch.exp(negative / temperature)
    return -torch.log(top / total)


def slow_infonce(
    queries,
    passages,
    temperature,
    passage_ids=None,
    query_ids=None,
    symmetric=False,
    same_side=False,
    joint=False,
    **weighting,
):
    ids = passage_ids, query_ids
    everyone = range(len(queries))
    losses = []
    for i in everyone:
        positive = cosine(queries[i], passages[i, 0])
        others = [k for k in everyone if k != i and not answers(i, k, 0, *ids)]
        negatives = [
            cosine(queries[i], passages[k, place])
            for k in everyone
            for place in range(passages.shape[1])
            if (k, place) != (i, 0) and not answers(i, k, place, *ids)
        ]
        if same_side:
            negatives += [cosine(queries[i], queries[k]) for k in others]
        loss = share(positive, negatives, temperature, **weighting)
        if symmetric:
            forth = negatives
            negatives = [cosine(passages[i, 0], queries[k]) for k in others]
            if same_side:
                negatives += [cosine(passages[i, 0], passages[k, 0]) for k in others]
            if joint:
                loss = share(positive, forth + negatives, temperature, times=2, **weighting)
            else:
                loss = (loss + share(positive, negatives, temperature, **weighting)) / 2
        losses.append(loss)
    return sum(losses) / len(losses)


def slow_debiased(queries, passages, temperature, tau_plus, passage_ids=None, query_ids=None):
    losses = []
    for i in range(len(queries)):
        positive = torch.exp(cosine(queries[i], passages[i, 0]) / temperature)
        negatives = [
            torch.exp(cosine(queries[i], passages[k, place]) / temperature)
            for k in range(len(queries))
            for place in range(passages.shape[1])
            if (k, place) != (i, 0) and not answers(i, k, place, passage_ids, query_ids)
        ]
        n = len(negatives)
        corrected = (sum(negatives) / n - tau_plus * positive) / (1 - tau_plus)
        g = torch.clamp(corrected, min=torch.exp(torch.tensor(-1 / temperature).double()))
        losses.append(-torch.log(positive / (positive + n * g)))
    return sum(losses) / len(losses)


def slow_sigreg(embeddings, directions, num_knots=17, max_t=3.0):
    """The statistic along each column of `directions`, knot by knot."""
    n, d = embeddings.shape
    step = max_t / (num_knots - 1)
    total = 0.0
    for direction in directions.T.double():
        integral = 0.0
        for knot in range(num_knots):
            t = torch.tensor(knot * step).double()
            values = [cosine(row, direction) * d**0.5 * t for row in embeddings]
            real = sum(torch.cos(value) for value in values) / n
            imaginary = sum(torch.sin(value) for value in values) / n
            gaussian = torch.exp(-(t**2) / 2)
            height = ((real - gaussian) ** 2 + imaginary**2) * gaussian
            # Twice the trapezoidal rule on [0, max_t].
            integral = integral + 2 * step * height * (0.5 if knot in (0, num_knots - 1) else 1.0)
        total = total + n * integral
    return total / directions.shape[1]
