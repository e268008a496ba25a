"""VDG: the weights of L_Gref = L_adv + lambda (alpha L_SSIM^mask + (1 - alpha) L_1^mask), M's weight w among them."""

from ray import tune

SPACE = {
    "refinement.alpha": tune.uniform(0.0, 1.0),
    "refinement.image_weight": tune.loguniform(1.0, 1000.0),  # lambda: 10 on Market-1501, 50 on DeepFashion
    "refinement.mask_weight": tune.uniform(0.0, 4.0),  # w: 1, and 2 in the variant "w"
}
