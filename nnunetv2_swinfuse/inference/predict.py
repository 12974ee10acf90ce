"""`swinfuse_predict`: nnU-Net's prediction with checked images and a report; a failed case or a kill loses no other.

The masks are those of nnUNetv2_predict, bit for bit, for every image that passes the checks.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from nnunetv2_swinfuse.errors import errors_without_traceback
from nnunetv2_swinfuse.inference.check import add_accept_argument, add_model_arguments, model_folder

PROGRAM = "swinfuse_predict"


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point. Exits with 0 when all masks exist, 3 with warnings, 4 when a case has none, 2 without any."""
    options = parse(arguments)
    # Importing nnU-Net and torch takes seconds, which a wrong command should not.
    from nnunetv2_swinfuse.inference.prediction import predict

    with errors_without_traceback(PROGRAM):
        code = predict(options, model_folder(options), list(sys.argv[1:] if arguments is None else arguments))
    raise SystemExit(code)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """nnUNetv2_predict's flags and our own."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("-i", nargs="+", type=Path, required=True, metavar="PATH", help="images, or folders of images")
    parser.add_argument("-o", type=Path, required=True, metavar="FOLDER", help="folder of the masks and report.json")
    add_model_arguments(parser)
    own = parser.add_argument_group("what nnUNetv2_predict does not have")
    own.add_argument("--overwrite", action="store_true", help="predict again where a mask exists")
    add_accept_argument(own, "memory")
    own.add_argument("--overlays", action="store_true", help="a picture of each mask over its image, in overlays/")
    stock = parser.add_argument_group("as in nnUNetv2_predict")
    stock.add_argument("-f", nargs="+", metavar="FOLD", help="folds; default: all that have the checkpoint")
    stock.add_argument("-step_size", type=float, default=0.5, help="of the sliding window; default: 0.5")
    stock.add_argument("--disable_tta", action="store_true", help="no mirroring: faster, less accurate")
    stock.add_argument("--verbose", action="store_true", help="also print nnU-Net's own messages")
    stock.add_argument("--save_probabilities", action="store_true", help="for ensembles")
    stock.add_argument("--continue_prediction", "--c", action="store_true", help="no effect: runs always resume")
    stock.add_argument("-chk", default="checkpoint_final.pth", help="default: checkpoint_final.pth")
    stock.add_argument("-npp", type=_count, default=1, help="cases that are read ahead; default: 1")
    stock.add_argument("-nps", type=_count, default=1, help="cases that are written meanwhile; default: 1")
    stock.add_argument("-prev_stage_predictions", type=Path, metavar="FOLDER", help="for a cascade")
    stock.add_argument("-num_parts", type=int, default=1, help="how many processes share the cases")
    stock.add_argument("-part_id", type=int, default=0, help="which of them this is, from 0 on")
    stock.add_argument("-device", choices=("cuda", "cpu", "mps"), help="default: cuda where there is one, else cpu")
    stock.add_argument("--disable_progress_bar", action="store_true", help="no progress bar")
    stock.add_argument("--not_on_device", action="store_true", help="collect the logits in main memory")
    options = parser.parse_args(arguments)
    if not 0 < options.step_size <= 1:
        parser.error(f"-step_size {options.step_size}: expected more than 0 and at most 1")
    if not 0 <= options.part_id < options.num_parts:
        parser.error(f"-part_id {options.part_id}: expected 0 to {options.num_parts - 1}, below -num_parts")
    return options


def _count(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 64:
        raise argparse.ArgumentTypeError(f"{number}: expected 0 to 64")
    return number


if __name__ == "__main__":
    main()
