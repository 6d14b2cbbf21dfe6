import pytest
from torch import nn

from hrsa_lightning.errors import ConfigError
from hrsa_lightning.modules.gradient_sync import gradient_sync


def test_an_engine_of_deepspeed_is_refused():
    engine = type("DeepSpeedEngine", (nn.Module,), {"__module__": "deepspeed.runtime.engine"})
    with pytest.raises(ConfigError, match=r"trainer.strategy: expected fsdp2 .*DeepSpeedEngine"):
        gradient_sync(engine())
