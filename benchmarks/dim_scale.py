"""How the size of the Domain Invariance Module's update changes what random encoders know of organs, also zero-shot.

    python benchmarks/dim_scale.py 0.1 -d 510 511 --test_on 510 511 --labelled 4 --controls random \
        -p tiny --collection COLLECTION --output dim_scale_0.1.csv

For single images, the module's output is replaced by `input + SCALE * (output - input)`: 1 is the module as it is, 0 an
encoder without one. All other options are those of `python -m pretraining.voxel_probe`. Give each scale a table of its
own: the rows do not record it.
"""

from __future__ import annotations

import argparse

from torch import Tensor

from nnunetv2_swinfuse.architecture.encoder import DomainInvariantEncoder
from pretraining.voxel_probe import command


def use_scale(scale: float) -> None:
    """Scales the module's update in every encoder of this process."""

    def forward(self: DomainInvariantEncoder, embedding: Tensor) -> list[Tensor]:
        if self.domain_invariance is not None:
            embedding = embedding.lerp(self.domain_invariance(embedding), scale)
        return self.features(embedding)

    DomainInvariantEncoder.forward = forward  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scale", type=float)
    options, arguments = parser.parse_known_args()
    use_scale(options.scale)
    command.main(arguments)


if __name__ == "__main__":
    main()
