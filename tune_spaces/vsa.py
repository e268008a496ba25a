"""VSA: the weights of its feature and adversarial losses beside that of the image."""

from ray import tune

SPACE = {
    "analogy.feature_weight": tune.loguniform(0.01, 10.0),  # alpha and beta: 1 in the code
    "analogy.adversarial_weight": tune.loguniform(0.0001, 1.0),  # gamma: 1 in the code
}
