"""PG2: lambda, the weight of the masked L1 beside the adversarial loss in stage II."""

from ray import tune

SPACE = {
    "refinement.l1_weight": tune.loguniform(1.0, 1000.0),  # lambda: 10 on Market-1501, 50 on DeepFashion
}
