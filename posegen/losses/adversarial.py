"""The adversarial game of DCGAN and PG2: binary cross-entropy on logits, discriminators of image stacks.

Where PG2's paper and released code disagree on the input of the discriminator, both are here:
- "stack" (models256.py, DeepFashion): images one by one; the target is real, the generated image and the condition (the
  source image) are fake; all three are scored in one forward pass.
- "stack-with-coarse" (models.py, Market-1501): the same with stage I's image in the stack. It is in no loss, only
  logged, but takes part in the discriminator's batch statistics.
- "pair" (the paper): the source image concatenated on the channels with the target (real) or with the generated image
  (fake). Both are scored in one forward pass, as the code does with its stack: our choice, the paper is silent.

The discriminator minimises 0.5 BCE(D(I_B), 1) + 0.25 BCE(D(I_A), 0) + 0.25 BCE(D(G), 0) on a stack (trainer.py), and on
pairs 0.5 BCE(D(I_A, I_B), 1) + 0.5 BCE(D(I_A, G), 0): the paper's adversarial loss, halved to the code's scale.
"""

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from posegen.batch import Batch, Images, Scalar
from posegen.stage import Term

Logits = Float[Tensor, " batch"]
DiscriminatorInput = Literal["stack", "stack-with-coarse", "pair"]
CHANNELS = {"stack": 3, "stack-with-coarse": 3, "pair": 6}  # of a discriminator's input


def real_loss(logits: Logits) -> Scalar:
    """Return -mean log sigmoid(z) = BCE(sigmoid(z), 1), of logits z: in [0, inf), log 2 for an undecided discriminator.

    The discriminator's term for real images, and the generator's non-saturating loss for its own (PG2's L_adv).
    """
    return -F.logsigmoid(_at_least_float32(logits)).mean()


def fake_loss(logits: Logits) -> Scalar:
    """Return -mean log(1 - sigmoid(z)) = BCE(sigmoid(z), 0), of logits z: in [0, inf), log 2 as in `real_loss`."""
    return -F.logsigmoid(-_at_least_float32(logits)).mean()


def score_together(
    discriminator: nn.Module, groups: Mapping[str, Float[Tensor, "batch channels height width"]]
) -> dict[str, Logits]:
    """Return the logits of groups of images, stacked on the batch axis and scored in one forward pass.

    PG2's released trainer.py does so: batch normalisation then sees the statistics of the whole stack.
    """
    logits = discriminator(torch.cat(list(groups.values())))
    return dict(zip(groups, logits.split([len(group) for group in groups.values()]), strict=True))


def scores(kind: DiscriminatorInput, discriminator: nn.Module, batch: Batch, generated: Images) -> dict[str, Logits]:
    """Return logits named "real" and "fake", and in a stack "condition" and perhaps "coarse"."""
    source, target = batch["source_image"], batch["target_image"]
    if kind == "pair":
        groups = {"real": torch.cat([source, target], dim=1), "fake": torch.cat([source, generated], dim=1)}
    elif kind == "stack":
        groups = {"real": target, "fake": generated, "condition": source}
    else:
        groups = {"real": target, "condition": source, "coarse": batch["coarse_image"], "fake": generated}
    return score_together(discriminator, groups)


def generator_terms(logits: Mapping[str, Logits]) -> dict[str, Term]:
    """Return the term "adversarial", BCE(D(G), 1), of `scores`."""
    return {"adversarial": Term(real_loss(logits["fake"]))}


def discriminator_terms(logits: Mapping[str, Logits]) -> dict[str, Term]:
    """Return the terms "real", "fake", and in a stack "condition", of `scores`.

    "coarse", of weight 0, says how real stage I's image is scored.
    """
    fakes = 1 + ("condition" in logits)
    weights = {"fake": 0.5 / fakes, "condition": 0.5 / fakes, "coarse": 0.0}
    terms = {name: Term(fake_loss(logits[name]), weight) for name, weight in weights.items() if name in logits}
    return {"real": Term(real_loss(logits["real"]), 0.5), **terms}


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
