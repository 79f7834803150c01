#!/usr/bin/env bash
# All that a GPU is needed for, in one go:  gpu_cifar10.sh DATA OUT [STEP ...]
#
# DATA holds CIFAR-10, OUT gets JSON, Markdown and PNG files. Steps: check speed report modern (all by default). Every
# step leaves OUT complete up to there. The benchmarks themselves live in ${WORK:-OUT.work}: a second call goes on
# where the first was stopped. TOY=1 runs everything at toy size on whatever device there is.
set -euo pipefail

data=$1 out=$2
shift 2
steps=("$@")
[ ${#steps[@]} -gt 0 ] || steps=(check speed report modern)
work=${WORK:-${out%/}.work}
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH=$here/../..${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
python=${PYTHON:-python3}
mkdir -p "$out" "$work"

keep() { # what a benchmark has so far, also when it is stopped
  for file in "$work/$1"/*.json "$work/$1"/*.md "$work/$1"/*.png; do
    if [ -e "$file" ]; then cp "$file" "$out/$1-$(basename "$file")"; fi
  done
}

bench() { # NAME ARGUMENTS...
  local name=$1 status=0
  shift
  SECONDS=0
  "$python" -c 'from kd.cli import main; main()' bench cifar10 --data "$data" --output "$work/$name" "$@" || status=$?
  keep "$name"
  echo "$name: $SECONDS s, status $status"
  return $status
}

for step in "${steps[@]}"; do
  case $step in
    check) "$python" "$here/cifar10_check.py" --output "$out/check.json" ;;
    speed)
      toy=(); [ -z "${TOY:-}" ] || toy=(--images 200 --batch-size 50 --width 0.05 --epochs 1 --workers 2)
      "$python" "$here/cifar10_speed.py" --data "$data" --output "$out/speed.json" --plain "${toy[@]}" ;;
    report)
      if [ -n "${TOY:-}" ]; then bench report --preset smoke --images 200 --width 0.05
      else bench report --preset report --seeds 5; fi ;;
    modern) [ -n "${TOY:-}" ] || bench modern --preset modern ;;
    *) echo "no step is called $step: check, speed, report, modern" >&2; exit 2 ;;
  esac
done
