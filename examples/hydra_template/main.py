"""A project in the shape of the lightning-hydra-template; the monitor is a line of its callbacks.

The same model and data as in `lightning_cli`. From the top of the clone, with hydra-core installed:

    python -m examples.hydra_template.main callbacks.similarity.every_n_train_steps=20
"""

import hydra
import lightning.pytorch as pl
from omegaconf import DictConfig


def instantiate_callbacks(configs: DictConfig) -> list[pl.Callback]:
    """As the template does it: what has no `_target_` of its own is left out."""
    return [
        hydra.utils.instantiate(config)
        for config in configs.values()
        if isinstance(config, DictConfig) and "_target_" in config
    ]


def train(config: DictConfig) -> pl.Trainer:
    pl.seed_everything(config.seed)
    data = hydra.utils.instantiate(config.data)
    model = hydra.utils.instantiate(config.model)
    callbacks = instantiate_callbacks(config.callbacks)
    trainer = hydra.utils.instantiate(config.trainer, callbacks=callbacks)
    trainer.fit(model, datamodule=data)
    return trainer


@hydra.main(version_base="1.3", config_path="configs", config_name="train.yaml")
def main(config: DictConfig) -> None:
    train(config)


if __name__ == "__main__":
    main()
