"""Multistage: the weights of both parts of the L1, by area, beside the adversarial losses of stages 2 and 3."""

from ray import tune

# 100 in our settings; the paper's values are not known
SPACE = {
    "foreground.alpha_f": tune.loguniform(1.0, 1000.0),  # of the person
    "foreground.beta_f": tune.loguniform(1.0, 1000.0),  # of the empty background
    "background.alpha_b": tune.loguniform(1.0, 1000.0),
    "background.beta_b": tune.loguniform(1.0, 1000.0),
}
