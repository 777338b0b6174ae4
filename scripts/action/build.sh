#!/bin/bash
# What action.yml does: makes the program, unless one is given, and builds. Inputs come as INPUT_NAME in the environment. They are data:
# none becomes a part of a command's text, or an option that isn't meant.
set -euo pipefail

die() {
	echo "godkms-hermetic: $1" >&2
	exit 1
}

# The lines of an input that aren't empty, in the array lines.
lines_of() {
	local line
	lines=()
	while IFS= read -r line || [ -n "$line" ]; do
		line=${line%$'\r'}
		[ -z "${line//[[:space:]]/}" ] || lines+=("$line")
	done <<<"$1"
}

work=${RUNNER_TEMP:?}/godkms-hermetic
mkdir -p "$work"
out=${INPUT_OUT:-out}
case $out in *[$'\n\r']*) die "the input out has several lines" ;; esac # each would be an output

program=${INPUT_PROGRAM:-}
if [ -z "$program" ]; then # of the same commit as the action
	program=$work/bin/godkms-hermetic
	CGO_ENABLED=0 go build -C "$GITHUB_ACTION_PATH" -trimpath -buildvcs=false -o "$program" ./cmd/godkms-hermetic
fi

args=()
lines_of "${INPUT_KERNELS:-}"
for line in "${lines[@]}"; do args+=("--kernels=$line"); done
lines_of "${INPUT_MIRROR:-}"
for line in "${lines[@]}"; do args+=("--mirror=$line"); done
[ -z "${INPUT_LOCK:-}" ] || args+=("--lock=$INPUT_LOCK")
[ -z "${INPUT_CACHE_DIR:-}" ] || args+=("--cache-dir=$INPUT_CACHE_DIR")
lines_of "${INPUT_SOURCE:-.}"
sources=("${lines[@]}")

if [ -n "${INPUT_PLAN:-}" ]; then
	matrix=$("$program" matrix --format=github "--shards=$INPUT_PLAN" "${args[@]}" -- "${sources[@]}")
	echo "matrix=$matrix" >>"$GITHUB_OUTPUT"
	exit
fi

args+=(--format=json "--out=$out" "--engine=${INPUT_ENGINE:-auto}")
[ -z "${INPUT_SHARD:-}" ] || args+=("--shard=$INPUT_SHARD")
forms=(junit:xml markdown:md html:html)
lines_of "${INPUT_ARGS:-}"
args+=("${lines[@]}")
for form in "${forms[@]}"; do
	rm -f "$work/report.${form#*:}"
	args+=("--report=${form%:*}=$work/report.${form#*:}")
done

# A build's output may look like commands to the runner, which reads them at the beginning of any line.
token=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
echo "::stop-commands::$token"
"$program" build "${args[@]}" -- "${sources[@]}" >"$work/results.json" &
pid=$!
trap 'kill -TERM "$pid" 2>/dev/null || :' INT TERM # a job that is cancelled has its report too
code=0
wait "$pid" || code=$?
while kill -0 "$pid" 2>/dev/null; do # a signal ended just the waiting
	code=0
	wait "$pid" || code=$?
done
echo "::$token::"

{
	echo "exit-code=$code"
	echo "out=$out"
	echo "results=$work/results.json"
	for form in "${forms[@]}"; do
		[ ! -e "$work/report.${form#*:}" ] || echo "${form%:*}=$work/report.${form#*:}"
	done
} >>"$GITHUB_OUTPUT"
[ ! -e "$work/report.md" ] || cat "$work/report.md" >>"$GITHUB_STEP_SUMMARY"

if [ "$code" = 77 ]; then # a job of a matrix may have just such kernels
	echo "::notice::the dkms.conf excludes every kernel (BUILD_EXCLUSIVE)"
	code=0
fi
exit "$code"
