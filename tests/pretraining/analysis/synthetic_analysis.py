"""Tiny frozen encoders and crops for the tests of the analysis."""

import torch
import torch.nn.functional as F

from pretraining.analysis.arms import Arm
from pretraining.analysis.crops import Crop, CropSets, Domain
from pretraining.analysis.tokens import LayerTokens
from pretraining.voxel_probe.encoders import FrozenEncoder

from ..synthetic import tiny

SIZE = 16


def network(seed=0, **changes) -> FrozenEncoder:
    configuration = tiny(**changes)
    return FrozenEncoder(configuration.encoder_settings, configuration.topology.strides, (1.0, 1.0, 1.0), seed)


def arm(name="random", seed=0, floor="random", **changes) -> Arm:
    return Arm(name, seed, network(seed, **changes), "weights", floor)


def smooth(seed, size=SIZE):
    """A smooth random image (1, 1, z, y, x), anatomy of a kind."""
    coarse = torch.randn(1, 1, 5, 5, 5, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=(size,) * 3, mode="trilinear", align_corners=True)


def crop_sets(count=4, patients=4, same=False, registered=True, labels=False) -> CropSets:
    """Crops of two domains; MR is the negative of CT, or the same image."""
    ct, mr = [], []
    for index in range(count):
        image, patient = smooth(index), f"p{index % patients}"
        classes = (image[0, 0, ::2, ::2, ::2] > 0).long() if labels else None
        ct.append(Crop(image, patient, classes))
        mr.append(Crop(image if same else -image, patient, classes))
    names = {1: "bright"} if labels else {}
    source = {"collection": "Synthetic"}
    return CropSets(Domain("CT", tuple(ct)), Domain("MR", tuple(mr)), registered, (1.0, 1.0, 1.0), names, source)


def layer_tokens(seed=0, crops=8, samples=32, channels=6, shift=0.0, tokens=None, neighbours=None) -> LayerTokens:
    """Independent normal tokens, each crop of another patient."""
    if tokens is None:
        tokens = torch.randn(crops, samples, channels, generator=torch.Generator().manual_seed(seed)) + shift
    tissue = torch.ones(tokens.shape[:2], dtype=torch.bool)
    patients = [f"p{index}" for index in range(len(tokens))]
    rolled = tokens.roll(1, 0) if neighbours is None else neighbours
    return LayerTokens(tokens, tissue, tokens.mean(1), patients, rolled, tissue)
