#!/usr/bin/env bash
# All that a GPU is needed for on documents, in one go:  gpu_documents.sh DOCUMENTS.csv OUT [STEP ...]
#
# DOCUMENTS.csv has the columns path, label and source_repo. Steps: check, speed (of the positional schemes), large (a
# large model, whole sources left out), small (the compact one, likewise), distilled (the compact one, taught by the
# large one of the same sources). OUT gets JSON and PNG files. SEEDS (3) and LARGE, the large model's settings, may be
# set; TOY=1 runs everything at toy size on whatever device there is. See gpu_steps.sh for what happens when it is stopped.
set -euo pipefail

data=$1 out=$2
shift 2
steps=("$@")
[ ${#steps[@]} -gt 0 ] || steps=(check speed large small distilled)
source "$(dirname "$0")/gpu_steps.sh"
# some 25 times the compact model's FLOPs a page
large=${LARGE:---set embed_dim=256 --set num_heads=4 --set depth=6 --set page_size=512 --set grid=[16,16]}

lso() { # NAME ARGUMENTS...
  local name=$1 size=(--seeds "${SEEDS:-3}" --jobs 5)
  shift
  [ -z "${TOY:-}" ] || size=(--folds 2 --epochs 1)
  (cd "$work" && "$python" "$here/leave_source_out.py" "$data" --output "$name" --device "$device" "${size[@]}" "$@")
}

run() { # STEP
  case $1 in
    check) "$python" "$here/documents_check.py" --output "$out/documents_check.json" ;;
    speed)
      local toy=()
      [ -z "${TOY:-}" ] || toy=(--model docvit_tiny_patch16 --documents 1 --pages 1 --turns 1)
      "$python" "$here/positions_speed.py" --output "$out/positions_speed.json" "${toy[@]}" ;;
    # shellcheck disable=SC2086
    large) lso large $large ;;
    small) lso small ;;
    distilled) lso distilled --teachers large --alpha 0.8 ;;
    *) echo "no step is called $1: check, speed, large, small, distilled" >&2; return 2 ;;
  esac
}

data=$(realpath "$data")
device=$("$python" -c 'from docvit.hardware import default_device; print(default_device())')
run_steps
