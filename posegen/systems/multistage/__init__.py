"""Multistage: Si, Wang, Wang, Tan: Multistage adversarial losses for pose-based human image synthesis, CVPR 2018,
pp. 118-126.

A person is turned: source image and rotation angle in, the same person in the same posture seen by another camera
out. Three stages, each trained with those before it frozen. The pose transformer ("pose") turns the source's joints to
the target's view; the foreground transformer ("foreground") draws the person in that predicted pose, without a
background; the background transformer ("background") draws the whole image.

Known from the authors' slides: the three stages and what they hand on, the formula of the foreground transformer, and
all losses; masks come from a CRF-RNN and poses from a stacked hourglass, here from the data. The paper's body was not
found and no code was released, so layers, loss weights, optimiser, splits and scores are not known: no number of the
paper can be given here. OUR CHOICES, each with its reason:
- pose transformer: the residual network that Martinez et al. (A simple yet effective baseline for 3d human pose
  estimation, ICCV 2017) lift poses with, without its limit on the weights' norm; layer instead of batch normalisation,
  so that no statistics of a batch are left behind. Its units are half of the image's longer side; an unknown joint
  is read as the image's middle. A joint is known in the predicted pose where it is in the source, and counts in the
  loss where it is known in both;
- the rotation as [sin, cos] of the true angle between the cameras: views are not spaced by 90 degrees;
- encoders and decoders: DCGAN's 4x4 convolutions of stride 2 (64, 128, 256, 512, 512 channels). Normalisation is over
  each whole feature map: unlike batch normalisation it makes no image depend on others, unlike instance
  normalisation it keeps the channels' means, in which a rotation and a colour lie. Skips go from f_pose(P_t*) to the
  decoder, never from the source image, which is not aligned with the target: the formula's network in Villegas et
  al. (Learning to generate long-term future via hierarchical prediction, ICML 2017), the paper's baseline "VSA", has
  none at all;
- background transformer: a U-Net on source image, predicted foreground and planes of [sin, cos] of the rotation:
  the source's scene and the rotation together say which camera's background is wanted;
- losses: both parts of the masked L1 are means over channels too, so that they compare with `l1`; a squared distance
  counts in the pose's units;
- the background behind a cut-out person is c = `backdrop` = 0, mid grey; what a discriminator does not see is 0 as
  well;
- discriminators: DCGAN's as in PG2. All images of one are scored in one pass, in every update;
- alpha = beta = 100 in all stages (pix2pix's ratio), Adam, rates, batches, steps, sizes, Gaussians of 6 pixels at 256;
- the meaning of the variants below, which the paper names "four foreground baselines" and "two baselines" only.
Variants: "full". Foreground: "no-adversarial" (no discriminator in stage 2), "global-l1" (plain L1 instead of two
parts by area), "one-branch" (one encoder of foreground and both poses), "concatenated" (two branches, but features
side by side instead of the formula). Whole images: "one-stage" (from source image and poses to the target at once,
with one discriminator), "one-critic" (stage 3 without the discriminator of the foreground). "joint": after the three
stages, all are fine-tuned together against all discriminators, with the sum of their losses (a fourth stage,
"joint").
Parameters at 256x256: pose 4,285,476; foreground 23,632,067 ("one-branch" 16,699,395, "concatenated" 32,020,675);
background 54,425,603 ("one-stage" 54,459,395); discriminators 10,925,057 with poses and 10,896,257 without. At 128x64
the background has 29,253,635, the discriminators 4,353,537 and 4,324,737."""
