"""Deformable GAN: lambda, the weight of the content loss beside the adversarial one, whichever the variant has."""

from ray import tune

SPACE = {
    # 0.01 for the nearest-neighbour loss, 0.5 for features of block2_conv1, 100 for pixels
    "generation.content_weight": tune.loguniform(0.001, 1000.0),
}
