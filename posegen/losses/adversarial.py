"""The adversarial game of DCGAN and PG2: binary cross-entropy on logits, and critics that score stacks of images."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from posegen.batch import Scalar

Logits = Float[Tensor, " batch"]


def judged_real(logits: Logits) -> Scalar:
    """-mean log sigmoid(z) = BCE(sigmoid(z), 1), of logits z: in [0, inf), log 2 where the critic cannot tell.

    The critic's term for real images, and the generator's non-saturating loss for its own (PG2's L_adv).
    """
    return -F.logsigmoid(_at_least_float32(logits)).mean()


def judged_fake(logits: Logits) -> Scalar:
    """-mean log(1 - sigmoid(z)) = BCE(sigmoid(z), 0), of logits z: in [0, inf), log 2 where the critic cannot tell."""
    return -F.logsigmoid(-_at_least_float32(logits)).mean()


def score_together(
    critic: nn.Module, groups: Mapping[str, Float[Tensor, "batch channels height width"]]
) -> dict[str, Logits]:
    """The critic's logits for groups of images, stacked on the batch axis and scored in one forward pass.

    PG2's released trainer.py does so: the critic's batch normalisation then sees the statistics of the whole stack.
    """
    logits = critic(torch.cat(list(groups.values())))
    return dict(zip(groups, logits.split([len(group) for group in groups.values()]), strict=True))


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
