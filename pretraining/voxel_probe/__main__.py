"""`python -m pretraining.voxel_probe`."""

from pretraining.voxel_probe.command import main

if __name__ == "__main__":
    main()
