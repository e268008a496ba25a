"""Appearance flow: the weight of the mask's cross-entropy beside the L1 of the image."""

from ray import tune

SPACE = {
    "flow.mask_weight": tune.loguniform(0.01, 10.0),  # 0.1 is our choice
}
