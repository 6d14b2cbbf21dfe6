"""The data and the backbones of a recipe in one folder, to train from without a network."""
