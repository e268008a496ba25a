"""pix2pix: lambda, the weight of the L1 term beside the adversarial one."""

from ray import tune

SPACE = {
    "translation.l1_weight": tune.loguniform(1.0, 1000.0),  # lambda: 100 in the paper
}
