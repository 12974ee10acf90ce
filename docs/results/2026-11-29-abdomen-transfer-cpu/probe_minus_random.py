"""Prints the probe's differences to random encoders: python probe_minus_random.py (in this folder)."""

import numpy as np
import pandas as pd

from nnunetv2_swinfuse.statistics import estimate

table = pd.read_csv("probe.csv", dtype={"dataset": str})
# Encoder, labelled cases and random encoder of the same seed; a mean over the classes.
table = table[table["seed"] == table["split"]]
dice = table.groupby(["dataset", "arm", "seed", "case"])["value"].mean()
for dataset in ("510", "511"):
    for arm in ("simmim", "mr", "swinfuse", "ct", "no_dim_no_density"):
        floor = "random" if arm in ("mr", "swinfuse", "ct") else "random as no_dim_no_density"
        difference = (dice[dataset, arm] - dice[dataset, floor]).unstack().to_numpy()
        print(dataset, arm, f"{np.mean(dice[dataset, arm]):.3f}", estimate([difference]))
