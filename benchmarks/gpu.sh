#!/usr/bin/env bash
# Every figure that needs a GPU, in one call; reports go to the folder named as the argument (default benchmarks/results).
# Encoder, network and DIM in bf16 autocast, eager and compiled; pretraining steps; design choices; planned memory.
set -uo pipefail
cd "$(dirname "$0")/.."
output=${1:-benchmarks/results}
python -c "import torch; assert torch.cuda.is_available(), 'no GPU here: see benchmarks/README.md for --quick'" || exit 1
failed=0
run() { echo "== $*"; python -W ignore "$@" || { echo "failed: $*"; failed=1; }; }
for script in encoder network dim; do
    run "benchmarks/$script.py" --bf16 --output "$output"
    run "benchmarks/$script.py" --bf16 --compile --output "$output"
done
run benchmarks/pretraining_step.py --output "$output"
run benchmarks/encoder.py --output "$output"
run benchmarks/design_choices.py --bf16 --output "$output"
run benchmarks/planned_memory.py --output "$output"
exit $failed
