"""Keys of `training` that are for other optimizers."""

from __future__ import annotations

NOT_BETAS = {
    "training.adam_beta1": "it is for Adam.",
    "training.adam_beta2": "it is for Adam.",
}
"""For optimizers that have no averages of Adam's kind, or name them in optimizer_kwargs."""

NOT_ADAM = NOT_BETAS | {"training.adam_epsilon": "it is for Adam."}
"""For optimizers that take nothing from Adam."""

NOT_SGD = {"training.sgd_momentum": "it is for SGD."}
"""For all but SGD."""
