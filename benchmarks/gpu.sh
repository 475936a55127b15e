#!/usr/bin/env bash
# All that a machine with a GPU must measure, in ten minutes; also runs, smaller, on a CPU.
#
#     bash benchmarks/gpu.sh [FOLDER]
#
# Writes FOLDER (default: benchmarks/results/<device>): one file per measurement. A measurement that
# fails or takes too long leaves its output there, and the next one begins. Without Ray only the
# training steps are measured.
set -u
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
device=$(python -c "import torch; print(torch.cuda.get_device_name().replace(' ', '-')
                    if torch.cuda.is_available() else 'cpu')")
folder=${1:-benchmarks/results/$device}
mkdir -p "$folder"

measure() { # NAME SECONDS COMMAND...
    local name=$1 seconds=$2
    shift 2
    echo "$name: $*"
    { date -u +%F; echo "$*"; timeout "$seconds" "$@" 2>&1 || echo "ended with $?"; } > "$folder/$name.txt"
    tail -n 1 "$folder/$name.txt" | cut -c 1-300
}

if [ "$device" = cpu ]; then
    variants=b0 all=b0 rounds=3 images=64 ray_images=200 steps=5 size=64 batch=8
else
    variants=b0,b4,b7 all=b0,b1,b2,b3,b4,b5,b6,b7 rounds=5 images=8192 ray_images=8000 steps=41
    size=224 batch=64
fi
measure train_step 120 python benchmarks/train_step.py --variants "$all" --rounds "$rounds" --no-compiled
measure train_step_frozen 100 python benchmarks/train_step.py --variants "$all" --rounds "$rounds" \
    --no-compiled --batchnorm frozen
measure lanes 50 python benchmarks/train_step.py --variants "$variants" --rounds "$rounds" \
    --batchnorm frozen --micro-batch 8 --batch 64
measure train_step_compiled 120 python benchmarks/train_step.py --variants b0 --rounds "$rounds" \
    --size "$size" --batch "$batch"
python -c "import ray" 2> /dev/null || { echo "Ray is not installed: the rest is left out"; exit 0; }
measure ray_train_step 50 python benchmarks/ray_train_step.py --size "$size" --batch "$batch" --rounds "$steps"
measure stall 80 python benchmarks/stall.py --images "$images" --epochs 3 --batch 64
measure ingest 80 python benchmarks/ingest.py --images "$ray_images" --rounds 3
