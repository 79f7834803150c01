# Sourced by gpu_*.sh, which have $data, $out, steps and run STEP: runs the steps, keeping in $out what there is so far.
# A step that fails does not stop the others, but is the status in the end. The benchmarks themselves live in
# ${WORK:-OUT.work}: a second call goes on where the first was stopped.
work=${WORK:-${out%/}.work}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH=$here/../..${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
python=${PYTHON:-python3}
mkdir -p "$out" "$work"

keep() { # in folders of the same names: a report shows the pictures beside it
  local file
  for file in "$work"/*/results.json "$work"/*/*.md "$work"/*/*.png; do
    if [ -e "$file" ]; then
      mkdir -p "$out/$(basename "$(dirname "$file")")"
      cp "$file" "$out/$(basename "$(dirname "$file")")"
    fi
  done
}

# bash comes to these once the step in progress has ended, which a signal to the whole group ends as well
trap keep EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

run_steps() {
  local step status failed=0
  for step in "${steps[@]}"; do
    SECONDS=0 status=0
    run "$step" || status=$?
    keep
    echo "$step: $SECONDS s, status $status"
    [ $status -eq 0 ] || failed=$status
  done
  return $failed
}
