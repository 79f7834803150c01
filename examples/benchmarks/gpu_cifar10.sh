#!/usr/bin/env bash
# All that a GPU is needed for, in one go:  gpu_cifar10.sh DATA OUT [STEP ...]
#
# DATA holds CIFAR-10, OUT gets JSON, Markdown and PNG files. Steps: check speed report modern (all by default). A step
# that fails does not stop the others, but is the status in the end. The benchmarks themselves live in
# ${WORK:-OUT.work}: a second call goes on where the first was stopped. TOY=1 runs everything at toy size on whatever
# device there is.
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

keep() { # what the benchmarks have so far, in folders of the same names: report.md shows the pictures beside it
  local file
  for file in "$work"/*/results.json "$work"/*/report.md "$work"/*/*.png; do
    if [ -e "$file" ]; then
      mkdir -p "$out/$(basename "$(dirname "$file")")"
      cp "$file" "$out/$(basename "$(dirname "$file")")"
    fi
  done
}

# bash comes to these once the step in progress has ended, which a signal to the whole group tells to end as well
trap keep EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

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
    modern) [ -n "${TOY:-}" ] || bench modern --preset modern ;;
    *) echo "no step is called $1: check, speed, report, modern" >&2; return 2 ;;
  esac
}

failed=0
for step in "${steps[@]}"; do
  SECONDS=0 status=0
  run "$step" || status=$?
  keep
  echo "$step: $SECONDS s, status $status"
  [ $status -eq 0 ] || failed=$status
done
exit $failed
