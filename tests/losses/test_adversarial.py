import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from posegen.losses.adversarial import fake_loss, real_loss, score_together
from posegen.nets.convolutional import DcganDiscriminator


def test_an_undecided_critic_costs_log_two():
    assert real_loss(torch.zeros(4)).item() == pytest.approx(math.log(2))
    assert fake_loss(torch.zeros(4)).item() == pytest.approx(math.log(2))


def test_hand_derived_values():
    logits = torch.tensor([math.log(3), -math.log(3)], dtype=torch.float64)  # judged real by 3/4 and by 1/4
    assert real_loss(logits).item() == pytest.approx(-(math.log(3 / 4) + math.log(1 / 4)) / 2)
    assert fake_loss(logits[:1]).item() == pytest.approx(-math.log(1 / 4))


def test_equal_to_binary_cross_entropy():
    logits = torch.linspace(-40, 40, 17, dtype=torch.float64)
    one, zero = torch.ones_like(logits), torch.zeros_like(logits)
    torch.testing.assert_close(real_loss(logits), F.binary_cross_entropy_with_logits(logits, one))
    torch.testing.assert_close(fake_loss(logits), F.binary_cross_entropy_with_logits(logits, zero))


def test_bfloat16_logits_are_judged_in_float32():
    logits = torch.tensor([0.1, -2.0], dtype=torch.bfloat16)
    assert real_loss(logits).dtype == torch.float32
    torch.testing.assert_close(real_loss(logits), real_loss(logits.float()))


@pytest.mark.parametrize("loss", [real_loss, fake_loss])
def test_gradients(loss):
    assert torch.autograd.gradcheck(loss, torch.tensor([0.3, -1.7, 4.0], dtype=torch.float64, requires_grad=True))


def test_a_matrix_of_logits_is_refused():
    with pytest.raises(TypeError):
        real_loss(torch.zeros(4, 1))


class CountingDiscriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        return images.mean(dim=(1, 2, 3))


def test_groups_are_scored_in_one_forward_and_keep_their_names():
    discriminator = CountingDiscriminator()
    scored = score_together(discriminator, {"real": torch.ones(2, 3, 4, 4), "fake": torch.zeros(2, 3, 4, 4)})
    assert discriminator.calls == 1
    assert {name: logits.tolist() for name, logits in scored.items()} == {"real": [1.0, 1.0], "fake": [0.0, 0.0]}


def test_batch_statistics_are_those_of_the_whole_stack():
    torch.manual_seed(0)
    discriminator = DcganDiscriminator(size=(32, 16), width=4).double()
    real, fake = torch.rand(4, 3, 32, 16).double(), 0.2 * torch.rand(4, 3, 32, 16).double()
    together = score_together(discriminator, {"real": real, "fake": fake})
    torch.testing.assert_close(torch.cat(list(together.values())), discriminator(torch.cat([real, fake])))
    assert (together["real"] - discriminator(real)).abs().min() > 1e-3
