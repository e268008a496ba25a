"""The game between a generator and PG2's critic, as PG2 and the systems built on it play it.

Where PG2's paper and released code disagree, both are here, chosen by a stage's field:
- "stack" (models256.py, DeepFashion): images one by one; the target is real, the generated image and the condition
  (the source image) are fake; all three are scored in one forward pass.
- "stack-with-coarse" (models.py, Market-1501): the same with stage I's image in the stack. It is in no loss, only
  logged, but takes part in the critic's batch statistics.
- "pair" (the paper): the source image concatenated on the channels with the target (real) or with the generated
  image (fake). Both are scored in one forward pass, as the code does with its stack: our choice, the paper is silent.

The critic minimises 0.5 BCE(D(I_B), 1) + 0.25 BCE(D(I_A), 0) + 0.25 BCE(D(G), 0) on a stack (trainer.py), and on pairs
0.5 BCE(D(I_A, I_B), 1) + 0.5 BCE(D(I_A, G), 0): the paper's adversarial loss, halved to the code's scale.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from posegen.batch import Batch, Images
from posegen.losses.adversarial import Logits, judged_fake, judged_real, score_together
from posegen.nets.critics import DcganCritic
from posegen.stage import Term

CriticInput = Literal["stack", "stack-with-coarse", "pair"]


def new_critic(kind: CriticInput, size: tuple[int, int], width: int) -> DcganCritic:
    """A fresh critic for that input, its first layer `width` channels wide (64 in DCGAN and PG2)."""
    return DcganCritic(size=size, channels=6 if kind == "pair" else 3, width=width)


def scores(kind: CriticInput, critic: nn.Module, batch: Batch, generated: Images) -> dict[str, Logits]:
    """Logits named "real" and "fake", and in a stack "condition" and perhaps "coarse"."""
    return score_together(critic, _groups(kind, batch, generated))


def _groups(kind: CriticInput, batch: Batch, generated: Images) -> dict[str, Tensor]:
    source, target = batch["source_image"], batch["target_image"]
    if kind == "pair":
        return {"real": torch.cat([source, target], dim=1), "fake": torch.cat([source, generated], dim=1)}
    if kind == "stack":
        return {"real": target, "fake": generated, "condition": source}
    return {"real": target, "condition": source, "coarse": batch["coarse_image"], "fake": generated}


def generator_terms(kind: CriticInput, critic: nn.Module, batch: Batch, generated: Images) -> dict[str, Term]:
    """The term "adversarial": BCE(D(G), 1). The critic scores the whole stack, for its batch statistics."""
    return {"adversarial": Term(judged_real(scores(kind, critic, batch, generated)["fake"]))}


def critic_terms(kind: CriticInput, critic: nn.Module, batch: Batch, generated: Images) -> dict[str, Term]:
    """The terms "real", "fake", and in a stack "condition"; "coarse", of weight 0, says how real stage I looks."""
    logits = scores(kind, critic, batch, generated)
    fakes = 1 + ("condition" in logits)
    weights = {"fake": 0.5 / fakes, "condition": 0.5 / fakes, "coarse": 0.0}
    terms = {name: Term(judged_fake(logits[name]), weight) for name, weight in weights.items() if name in logits}
    return {"real": Term(judged_real(logits["real"]), 0.5), **terms}
