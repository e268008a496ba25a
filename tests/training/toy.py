"""A small two-player stage for the tests of training: random enough to notice a lost random state."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from posegen.batch import Batch
from posegen.data.geometry.pose_maps import Discs
from posegen.stage import Canvas, Networks, Player, Term, Training
from posegen.systems.fields import replace_fields

CANVAS = Canvas((64, 32), Discs(radius=2))


@dataclass(frozen=True, kw_only=True)
class Tug:
    """The generator pulls an image towards the target, the critic tells them apart; dropout is the noise."""

    name: ClassVar[str] = "tug"
    reads: ClassVar[tuple[str, ...]] = ("source_image", "target_image")
    writes: ClassVar[tuple[str, ...]] = ("tug_image",)
    critic_repeats: int = 2
    clip: float | None = None
    skip_above: float | None = None
    training: Training = Training(steps=8, batch_size=4, lr=1e-2, discriminator_lr=1e-2, ema_decay=0.9)

    @property
    def players(self) -> tuple[Player, ...]:
        skip = None if self.skip_above is None else self._skip
        return (
            Player(name="generator", nets=("generator",), lr=self.training.lr),
            Player(
                name="critic", nets=("critic",), lr=self.training.lr, optimizer="rmsprop", repeats=self.critic_repeats,
                clip_weights=self.clip, skip_when=skip,
            ),
        )  # fmt: skip

    def _skip(self, terms) -> bool:
        return terms["generator/l1"] > self.skip_above

    def networks(self, canvas: Canvas) -> dict[str, nn.Module]:
        return {
            "generator": nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Dropout(0.5), nn.ReLU(), nn.Conv2d(4, 3, 1)),
            "critic": nn.Sequential(
                nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1)
            ),
        }

    def outputs(self, canvas: Canvas, nets: Networks, batch: Batch) -> dict[str, Tensor]:
        return {"tug_image": nets["generator"](batch["source_image"])}

    def loss(self, canvas: Canvas, player: str, nets: Networks, batch: Batch, outputs: Batch) -> dict[str, Term]:
        made = outputs["tug_image"]
        if player == "generator":
            l1 = (made - batch["target_image"]).abs().mean()
            return {"l1": Term(l1, 2.0), "adversarial": Term(-nets["critic"](made).mean())}
        return {"real": Term(-nets["critic"](batch["target_image"]).mean()), "fake": Term(nets["critic"](made).mean())}


@dataclass(frozen=True, kw_only=True)
class Tow(Tug):
    """Goes on with the generator of a `Tug` as its own; its critic is new."""

    name: ClassVar[str] = "tow"
    writes: ClassVar[tuple[str, ...]] = ("tow_image",)

    @property
    def starts_from(self) -> dict[str, tuple[str, str]]:
        return {"generator": ("tug", "generator")}

    def outputs(self, canvas: Canvas, nets: Networks, batch: Batch) -> dict[str, Tensor]:
        return {"tow_image": nets["generator"](batch["source_image"])}

    def loss(self, canvas: Canvas, player: str, nets: Networks, batch: Batch, outputs: Batch) -> dict[str, Term]:
        made = outputs["tow_image"]
        if player == "generator":
            return {"l1": Term((made - batch["target_image"]).abs().mean())}
        return {"fake": Term(nets["critic"](made.detach()).mean())}


def tug(**settings: object) -> Tug:
    """A `Tug` with some of its settings, those of its training among them."""
    return replace_fields(Tug(), settings, "tug")


def tow(**settings: object) -> Tow:
    return replace_fields(Tow(), settings, "tow")
