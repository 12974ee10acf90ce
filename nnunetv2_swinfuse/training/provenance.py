"""What a model was trained with: the `swinfuse` block of its plans, its checkpoints and its folds' records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from nnunetv2_swinfuse.architecture.encoder_file import Encoder
from nnunetv2_swinfuse.training.pretrained_part import pretrained_stages

# Key of the block in plans, checkpoints and records.
PROVENANCE_BLOCK = "swinfuse"
# What a user may write into the block of a configuration; everything else is recorded by this package.
REQUESTS = frozenset({"encoder", "training"})


@dataclass(frozen=True)
class Provenance:
    """The `swinfuse` block of a configuration; fields that are None are not written.

    Before training, the block holds what a user requests (`encoder`, `training`) and what the planner recorded
    (`planned`, and `encoder` where it was told to name one).

    Attributes:
        plugin: version of this package.
        pretrained: whether the trainer is one that loads an encoder.
        sizes_from: the encoder file that gave a network with random weights its sizes.
        encoder: the encoder file that was read.
        encoder_sha256: of this file; None before it was read.
        encoder_source: where the pretraining run keeps the encoder. Written with the encoder even if it is None, as for
            weights of MONAI.
        collection: name and hash of the collection that the encoder was pretrained on.
        pretrained_stages: how many stages of the network's encoder were pretrained.
        pretrained_decoder: whether stem, skips and decoder came with the encoder; None where they did not.
        training: settings of fine-tuning.
        planned: what the planner estimated.
        pretrained_weights: digest of the weights that were loaded in place of the encoder, with -pretrained_weights.
    """

    plugin: str | None = None
    pretrained: bool | None = None
    sizes_from: str | None = None
    encoder: str | None = None
    encoder_sha256: str | None = None
    encoder_source: str | None = None
    collection: Mapping[str, Any] | None = None
    pretrained_stages: int | None = None
    pretrained_decoder: bool | None = None
    training: Mapping[str, Any] | None = None
    planned: Mapping[str, Any] | None = None
    pretrained_weights: str | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Provenance:
        """Reads a block; raises ValueError naming unknown keys."""
        unknown = sorted(set(values) - KEYS)
        if unknown:
            raise ValueError(f"unknown keys {unknown} in 'swinfuse'; known are {sorted(KEYS)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The block as plain values, for plans.json and checkpoints."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: dict(value) if isinstance(value, Mapping) else value
            for name, value in values.items()
            if value is not None or (name == "encoder_source" and self.encoder_sha256 is not None)
        }

    @property
    def kept_encoder(self) -> str | None:
        """The file to use for further folds: the run's own rather than the published copy, which later runs replace."""
        return self.encoder_source or self.encoder

    def with_encoder(self, encoder: Encoder, architecture: Mapping[str, Any]) -> Provenance:
        """Records the encoder that the weights come from, and the decoder where `training` asks for it.

        Weights that were loaded in an earlier training of the only fold are forgotten.

        Args:
            encoder: as it was read from its file.
            architecture: the `architecture` block of the network.
        """
        return replace(
            self,
            encoder=encoder.path,
            encoder_sha256=encoder.sha256,
            encoder_source=encoder.source,
            collection=dict(encoder.collection),
            pretrained_stages=pretrained_stages(architecture, encoder),
            pretrained_decoder=bool(encoder.decoder_weights and (self.training or {}).get("pretrained_decoder"))
            or None,
            pretrained_weights=None,
        )

    def with_loaded_weights(self, digest: str) -> Provenance:
        """Records weights that replace the encoder's, which is then not used.

        Args:
            digest: see :func:`nnunetv2_swinfuse.training.fold_start.weights_digest`.
        """
        return replace(
            self,
            encoder=None,
            encoder_sha256=None,
            encoder_source=None,
            collection=None,
            pretrained_decoder=None,
            pretrained_weights=digest,
        )


KEYS = frozenset(field.name for field in fields(Provenance))
