#!/usr/bin/env bash
# All that a GPU is needed for on CIFAR-10, in one go:  gpu_cifar10.sh DATA OUT [STEP ...]
#
# DATA holds CIFAR-10, OUT gets JSON, Markdown and PNG files. Steps: check speed report modern (all by default). TOY=1
# runs everything at toy size on whatever device there is. See gpu_steps.sh for what happens when it is stopped.
set -euo pipefail

data=$1 out=$2
shift 2
steps=("$@")
[ ${#steps[@]} -gt 0 ] || steps=(check speed report modern)
source "$(dirname "$0")/gpu_steps.sh"

bench() { # NAME ARGUMENTS...
  local name=$1
  shift
  "$python" -c 'from kd.cli import main; main()' bench cifar10 --data "$data" --output "$work/$name" "$@"
}

run() { # STEP
  case $1 in
    check) "$python" "$here/cifar10_check.py" --output "$out/check.json" ;;
    speed)
      local toy=()
      [ -z "${TOY:-}" ] || toy=(--images 200 --batch-size 50 --width 0.05 --epochs 1 --workers 2)
      "$python" "$here/cifar10_speed.py" --data "$data" --output "$out/speed.json" --plain "${toy[@]}" ;;
    report)
      if [ -n "${TOY:-}" ]; then bench report --preset smoke --images 200 --width 0.05
      else bench report --preset report --seeds 5; fi ;;
    modern)
      local toy=()
      [ -z "${TOY:-}" ] || toy=(--images 200 --width 0.05 --epochs 1 --seeds 1)
      bench modern --preset modern "${toy[@]}" ;;
    *) echo "no step is called $1: check, speed, report, modern" >&2; return 2 ;;
  esac
}

run_steps
