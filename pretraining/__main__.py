"""`python -m pretraining`: the command `swinfuse_pretrain`, for torchrun."""

from pretraining.cli import main

main()
