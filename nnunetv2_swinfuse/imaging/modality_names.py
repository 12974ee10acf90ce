"""Names of modalities as datasets spell them, and whether each is CT or MR."""

from __future__ import annotations

import re
from typing import Literal

Domain = Literal["CT", "MR"]

# Names as nnU-Net's channel_names, BIDS suffixes and nnssl's OpenMind have them, in the spelling of `plain_name`.
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


def plain_name(name: str) -> str:
    """Lower case letters and digits; a star, as in T2*, is spelt out."""
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("*", "star"))
