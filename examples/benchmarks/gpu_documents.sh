#!/usr/bin/env bash
# All that a GPU is needed for on documents, in one go:  gpu_documents.sh DOCUMENTS.csv OUT [STEP ...]
#
# DOCUMENTS.csv has the columns path, label and source_repo. Steps: check, speed (of the positional schemes), linear (no
# blocks at all, whole sources left out), large (a large student of those), small (the compact one from labels),
# distilled (the compact student of both, of the same sources). OUT gets JSON and PNG files. SEEDS (3) and LARGE, the
# large model's settings, may be set; TOY=1 runs everything at toy size on whatever device there is. The ink stem's features are computed
# on CPUs first: to spare the GPU's time, bring OUT.work/runs/views.pt along. See gpu_steps.sh for what happens when it
# is stopped.
set -euo pipefail

data=$1 out=$2
shift 2
steps=("$@")
[ ${#steps[@]} -gt 0 ] || steps=(check speed linear large small distilled)
source "$(dirname "$0")/gpu_steps.sh"
# more than ten times the compact model's FLOPs per page; it reads the same pages, so that all share the features
large=${LARGE:---model docvit_wide_patch32 --lr 5e-4}

lso() { # NAME ARGUMENTS...
  local name=$1 size=(--seeds "${SEEDS:-3}" --jobs 5)
  shift
  [ -z "${TOY:-}" ] || size=(--folds 2)
  (cd "$work" && "$python" "$here/leave_source_out.py" "$data" --output "$name" --device "$device" "${size[@]}" "$@" ${TOY:+--epochs 1})
}

run() { # STEP
  case $1 in
    check) "$python" "$here/documents_check.py" --output "$out/documents_check.json" ;;
    speed)
      local toy=()
      [ -z "${TOY:-}" ] || toy=(--model docvit_tiny_patch16 --documents 1 --pages 1 --turns 1)
      "$python" "$here/positions_speed.py" --output "$out/positions_speed.json" "${toy[@]}" ;;
    linear) lso linear --model docvit_linear_patch32 --epochs 32 --label-smoothing 0 ;;
    # shellcheck disable=SC2086
    large) lso large $large --teachers linear ;;
    small) lso small ;;
    distilled) lso distilled --teachers linear large ;;
    *) echo "no step is called $1: check, speed, linear, large, small, distilled" >&2; return 2 ;;
  esac
}

data=$(realpath "$data")
device=$("$python" -c 'from docvit.hardware import default_device; print(default_device())')
run_steps
