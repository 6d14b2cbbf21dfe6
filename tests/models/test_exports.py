import importlib

import pytest

import hrsa_lightning.models


def test_every_lazy_name_is_where_it_is_said_to_be() -> None:
    assert sorted(hrsa_lightning.models.__all__) == hrsa_lightning.models.__all__
    assert dir(hrsa_lightning.models) == hrsa_lightning.models.__all__
    for name in hrsa_lightning.models.__all__:
        value = getattr(hrsa_lightning.models, name)
        assert value is getattr(importlib.import_module(value.__module__), name)
        assert value.__module__.startswith("hrsa_lightning.models.")


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"has no attribute 'Embedder'"):
        _ = hrsa_lightning.models.Embedder
