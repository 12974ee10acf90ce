"""The one exception a user of `swinfuse_pretrain` is meant to read."""

from nnunetv2_swinfuse.errors import InputError

__all__ = ["InputError"]
