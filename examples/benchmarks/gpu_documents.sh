#!/usr/bin/env bash
# All that a GPU is needed for on documents, in one go:  gpu_documents.sh DOCUMENTS.csv OUT [STEP ...]
#
# DOCUMENTS.csv has the columns path, label and group. Steps: check, speed (of the positional schemes), and, with whole
# groups left out, linear (no blocks at all), large (a large student of those), small (the compact one from labels),
# distilled (the compact student of both), judge (all models of all folds beside text classifiers). OUT gets JSON and PNG
# files. SEEDS (3) and LARGE, the large model's settings, may be set; TOY=1 runs everything at toy size on whatever
# device there is. See gpu_steps.sh for what happens when it is stopped.
set -euo pipefail

data=$1 out=$2
shift 2
steps=("$@")
[ ${#steps[@]} -gt 0 ] || steps=(check speed linear large small distilled judge)
source "$(dirname "$0")/gpu_steps.sh"
# more than ten times the compact model's FLOPs per page
large=${LARGE:---student docvit_wide_patch32 --lr 5e-4}
folds=${TOY:+2} folds=${folds:-5}

models() { # NAME "TEACHERS..." COMMAND...
  local name=$1 teachers=$2 seed fold output teacher options
  shift 2
  for ((seed = 0; seed < ${SEEDS:-3}; seed++)); do
    for ((fold = 1; fold <= folds; fold++)); do
      output=$work/models/$name/seed-$seed/fold-$fold
      options=(--group-by group --fold "$fold/$folds" --seed "$seed" --device "$device" --output "$output")
      for teacher in $teachers; do options+=(--teacher "$work/models/$teacher/seed-$seed/fold-$fold"); done
      [ ! -e "$output/checkpoint.safetensors" ] || options+=(--resume)
      "$python" -m "$@" ${TOY:+--epochs 1} "${options[@]}"
    done
  done
}

run() { # STEP
  case $1 in
    check) "$python" "$here/documents_check.py" --output "$out/documents_check.json" ;;
    speed)
      local toy=()
      [ -z "${TOY:-}" ] || toy=(--model docvit_tiny_patch16 --documents 1 --pages 1 --turns 1)
      "$python" "$here/positions_speed.py" --output "$out/positions_speed.json" "${toy[@]}" ;;
    linear)
      models linear "" docvit train "$data" --model docvit_linear_patch32 --epochs 32 --label-smoothing 0 ;;
    # shellcheck disable=SC2086
    large) models large linear kd distill "$data" --alpha 1 --temperature 1 $large ;;
    small) models small "" docvit train "$data" ;;
    distilled) models distilled "linear large" kd distill "$data" --alpha 1 --temperature 1 ;;
    judge)
      "$python" "$here/text_baseline.py" "$data" --folds "$folds" --models "$work/models" \
        --probabilities "$work/probabilities" --output "$out/models.json" ;;
    *) echo "no step is called $1: check, speed, linear, large, small, distilled, judge" >&2; return 2 ;;
  esac
}

data=$(realpath "$data")
device=$("$python" -c 'from docvit.hardware import default_device; print(default_device())')
run_steps
