"""Maps names of modalities to the two domains of the Domain Invariance Module, CT and MR."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from nnunetv2_swinfuse.errors import InputError
from pretraining.collections.collection import DOMAINS, Domain

# From nnU-Net's channel_names, BIDS suffixes and nnssl's OpenMind, spelt as `_normalise` returns them.
CT_NAMES = "ct cbct cta ncct cect ldct computedtomography"
MR_NAMES = (
    "mr mri t1 t1w t1weighted t1ce t1c t1gd t1post t1n t1map t2 t2w t2weighted t2star t2starw t2f t2map flair t2flair "
    "pd pdw pdt2 inplanet1 inplanet2 unit1 mp2rage mprage flash dwi adc dti fa trace swi bold asl perfusion mra angio "
    "dce dixon water fat inphase outphase opposedphase hbv ciss space"
)
KNOWN: dict[str, Domain] = {
    **dict.fromkeys(CT_NAMES.split(), "CT"),
    **dict.fromkeys(MR_NAMES.split(), "MR"),
}
LEFT_OUT = "none"


class ModalityMap:
    """Modality -> domain; the spelling does not matter: `T2-FLAIR`, `t2_flair` and `T2 FLAIR` are the same.

    Args:
        additions: domain (`CT`, `MR`, or `none` for volumes to leave out) by modality; overrides the known ones.
    """

    def __init__(self, additions: Mapping[str, str] | None = None):
        self._domains: dict[str, str] = dict(KNOWN)
        for name, domain in (additions or {}).items():
            if domain not in (*DOMAINS, LEFT_OUT):
                raise InputError(f"--modality {name}={domain}: expected CT, MR or {LEFT_OUT} after the =")
            self._domains[_normalise(name)] = domain

    @classmethod
    def from_words(cls, words: Iterable[str]) -> ModalityMap:
        """From words of a command line such as `PET=CT` and `US=none`; raises InputError for other words."""
        additions = {}
        for word in words:
            name, equals, domain = word.rpartition("=")
            if not equals or not _normalise(name):
                raise InputError(f"--modality {word}: expected NAME=CT, NAME=MR or NAME={LEFT_OUT}, such as PET=CT")
            additions[name] = domain if domain == LEFT_OUT else domain.upper()
        return cls(additions)

    def domain(self, modality: str, where: object) -> Domain | None:
        """The domain of a modality, None when its volumes are to be left out.

        Args:
            modality: its name.
            where: the file that names it, for the error message.

        Raises:
            InputError: for a modality that is not in the map, with the option that adds it.
        """
        domain = self._domains.get(_normalise(modality))
        if domain is None:
            raise InputError(
                f"{where}: modality {modality!r} is not known to be CT or MR (known are CT, CBCT, T1w, T2w, FLAIR, MR "
                f"and others). Assign it with --modality {modality}=CT or {modality}=MR, or leave its "
                f"volumes out with --modality {modality}={LEFT_OUT}"
            )
        return None if domain == LEFT_OUT else "CT" if domain == "CT" else "MR"


def _normalise(name: str) -> str:
    """Reduces a name to lower case letters and digits; a star, as in T2*, is spelt out."""
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("*", "star"))
