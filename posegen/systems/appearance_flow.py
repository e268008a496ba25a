"""Appearance flow: Zhou, Tulsiani, Sun, Malik, Efros: View Synthesis by Appearance Flow, ECCV 2016 (arXiv 1605.03557).

One stage ("flow"): the target picture is not drawn but copied. A network gives, for each pixel of the target, how far
away in the source picture its colour is to be found; there the source is sampled. A second decoder says which pixels
of the target are the object's. Released code: tinghuiz/appearance-flow (models/*/deploy.prototxt, its Caffe layers
remap_layer.cpp and resize_layer.cpp, demo.ipynb); solvers and training networks were not released.

From the code
- "view" is the object network of models/car_single: encoder of six convolutions and two linear layers, two linear
  layers for the view, two decoders that share nothing but their input; at 224x224 layer by layer the published one;
- "full" and "no-mask" are the scene network of models/kitti_single: the condition is laid over the picture's pixels,
  five convolutions, five deconvolutions, no skips;
- flows are offsets in pixels, resized bilinearly with the corners on each other; sampling is bilinear, and black
  outside the picture;
- the view as one of 19 steps of 20 degrees, [-180, 180], one-hot, with a 20th entry that is always 1.

Our choices, for the paper has no people
- "full": the condition is both poses' maps, 36 channels in place of the tiled camera motion, and the mask decoder of the
  object network, as further deconvolutions of the same features, is added;
- at scene networks' deconvolutions sides double exactly (the code: 2n - 1), and `depth` says how often they are halved:
  2n - 1 never leaves a width of one, which five halvings make of 32 pixels;
- at other sizes than 224x224 the object network's decoders begin with as few rows and columns as reach the size
  (8x8 there, as published; 3x2 for 64x32), for at 8x8 they would draw 225x225 of any picture;
- the picture is the sampled one, background and all, and the mask a column beside it: `foreground`, the probability.
  The demo shows the object on black, which is `cut_out`; on whole pictures that would be scored for its black;
- `view_code="angle"`: sine and cosine of the angle with the 1, for cameras between the steps;
- the last convolution of the flow starts at zero, so that the picture starts as the source;
- the loss: mean L1 of the sampled picture, and 0.1 of the mask's cross-entropy. The paper has an L1 loss too; its
  weights, steps, batch and rates were not found: Adam 1e-4, halved every 50,000 steps, is remembered, not read;
- no mean taken off the picture, which is in [-1, 1]; the settings of all data sets.

Parameters at width 16 (32 for the scene network): "view" 122,240,612 at 224x224 as published; "full" 5,487,844 and
"no-mask" 3,562,754 at every size. No numbers are published for people. A flow can only show what the source shows: a
back seen from the front gets the front's colours.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from posegen.batch import Batch, Images
from posegen.data.pose_maps import Discs
from posegen.losses.reconstruction import l1
from posegen.stage import Halving, Networks, Player, System, Term
from posegen.systems.settings import check_fields, check_known, settings_for

PAPER = "Zhou et al.: View Synthesis by Appearance Flow, ECCV 2016"
JOINTS = 18
