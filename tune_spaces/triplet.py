"""Triplet: lambda and the mask's weight of the refinement, L_adv + lambda (L1 + w masked L1)."""

from ray import tune

SPACE = {
    "refinement.l1_weight": tune.loguniform(1.0, 1000.0),  # lambda: 50 in the released code
    "refinement.mask_weight": tune.uniform(0.0, 4.0),  # w: 1 in the paper
}
