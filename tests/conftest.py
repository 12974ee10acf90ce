"""Set before torch and nnunetv2 are imported, which read these once."""

import os

# Two cores whose idle threads spin slow each other down many times over; sleeping costs nothing here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# nnU-Net would start eight processes for every validation and prediction.
os.environ.setdefault("nnUNet_def_n_proc", "1")
