"""Discriminators: networks that score how real an image looks, one logit an image."""

import math

from jaxtyping import Float
from torch import Tensor, nn

from posegen.nets.unet import bottleneck_size, halving_convolution, level_count


def initialise_uniform(module: nn.Module) -> None:
    """Weights U(-0.02 sqrt(3), 0.02 sqrt(3)), whose standard deviation is 0.02; biases zero. For `nn.Module.apply`.

    PG2's released wgan_gp.py for its discriminator's convolutions and fully connected layer.
    """
    if isinstance(module, nn.Conv2d | nn.Linear):
        limit = 0.02 * math.sqrt(3)
        nn.init.uniform_(module.weight, -limit, limit)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class DcganDiscriminator(nn.Module):
    """DCGAN's discriminator as PG2's released wgan_gp.py builds it.

    5x5 convolutions of stride 2 with LeakyReLU 0.2, widths 64, 128, 256, 512 and again 512, as many as bring the
    image to 8 rows (4 for 128x64, 5 for 256x256), batch normalisation on all but the first, then one linear unit.
    The normalisation always uses the batch's own statistics, in evaluation too, and eps 1e-5: so an image's score
    depends on which others are scored with it, and what is scored together matters. `normalised=False` leaves it out
    (for critics with clipped weights), and an image's score is its own.
    """

    def __init__(self, *, size: tuple[int, int], channels: int = 3, width: int = 64, normalised: bool = True) -> None:
        super().__init__()
        widths = [width * min(2**k, 8) for k in range(level_count(size) - 1)]
        layers: list[nn.Module] = []
        for k, (inner, outer) in enumerate(zip([channels, *widths], widths, strict=False)):
            layers.append(halving_convolution(inner, outer, kernel=5))
            if normalised and k > 0:
                layers.append(nn.BatchNorm2d(outer, track_running_stats=False))
            layers.append(nn.LeakyReLU(0.2))
        rows, columns = bottleneck_size(size)
        self.features = nn.Sequential(*layers)
        self.logit = nn.Linear(widths[-1] * rows * columns, 1)
        self.apply(initialise_uniform)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, " batch"]:
        """Return one logit an image; above zero is real."""
        return self.logit(self.features(images).flatten(1)).squeeze(1)
