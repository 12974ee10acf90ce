"""Maps names of modalities to the two domains of the Domain Invariance Module, CT and MR."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.imaging.modality_names import KNOWN, plain_name
from pretraining.collections.collection import DOMAINS, Domain

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
            self._domains[plain_name(name)] = domain

    @classmethod
    def from_words(cls, words: Iterable[str]) -> ModalityMap:
        """From words of a command line such as `PET=CT` and `US=none`; raises InputError for other words."""
        additions = {}
        for word in words:
            name, equals, domain = word.rpartition("=")
            if not equals or not plain_name(name):
                raise InputError(f"--modality {word}: expected NAME=CT, NAME=MR or NAME={LEFT_OUT}, such as PET=CT")
            additions[name] = domain if domain == LEFT_OUT else domain.upper()
        return cls(additions)

    def domain(self, modality: str, source: object) -> Domain | None:
        """The domain of a modality, None when its volumes are to be left out.

        Args:
            modality: its name.
            source: the file that names it, for the error message.

        Raises:
            InputError: for a modality that is not in the map, with the option that adds it.
        """
        domain = self._domains.get(plain_name(modality))
        if domain is None:
            raise InputError(
                f"{source}: modality {modality!r} is not known to be CT or MR (known are CT, CBCT, T1w, T2w, FLAIR, MR "
                f"and others). Assign it with --modality {modality}=CT or {modality}=MR, or leave its "
                f"volumes out with --modality {modality}={LEFT_OUT}"
            )
        return None if domain == LEFT_OUT else "CT" if domain == "CT" else "MR"
