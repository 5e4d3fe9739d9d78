#!/usr/bin/env bash
# The GPU's tests and every benchmark, in under 8 minutes, on a machine without a network where
# numwatch is not installed. It needs torch, Triton, Lightning, numba, pyarrow and rich; what is
# missing beyond that (pytest, torchao, the peers) is named and left out.
#
#   benchmarks/gpu_check.sh                          # results in benchmarks/results
#   OUT=/tmp/found benchmarks/gpu_check.sh
#   DEVICE=cpu OUT=/tmp/tried benchmarks/gpu_check.sh    # tries this script itself, very small
#
# A part that fails or takes too long does not stop the next; the exit code is 1 if one did.
set -u

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
OUT=${OUT:-$ROOT/benchmarks/results}
DEVICE=${DEVICE:-cuda}
PYTHON=${PYTHON:-python3}
mkdir -p "$OUT" && OUT=$(cd "$OUT" && pwd) || exit 2

# An installation maps callbacks/ to numwatch.callbacks; here a folder of links does.
LINKS=$(mktemp -d)
trap 'rm -rf "$LINKS"' EXIT
mkdir "$LINKS/numwatch"
ln -s "$ROOT"/numwatch/* "$LINKS/numwatch/"
ln -s "$ROOT/callbacks" "$LINKS/numwatch/callbacks"
VERSION=$(sed -n 's/^version = "\(.*\)"/\1/p' "$ROOT/pyproject.toml")
mkdir "$LINKS/numwatch-$VERSION.dist-info"
printf 'Metadata-Version: 2.1\nName: numwatch\nVersion: %s\n' "$VERSION" \
  > "$LINKS/numwatch-$VERSION.dist-info/METADATA"
export PYTHONPATH=$LINKS${PYTHONPATH:+:$PYTHONPATH}
cd "$LINKS" || exit 2  # not the checkout, whose numwatch/ has no callbacks

has() { "$PYTHON" -c "import importlib.util as u, sys; sys.exit(not u.find_spec('$1'))"; }

NAME=$(cd "$ROOT/benchmarks" && "$PYTHON" -c "
import torch
from machine import device_name
assert '$DEVICE' != 'cuda' or torch.cuda.is_available(), 'no CUDA device: set DEVICE=cpu to try'
import numwatch.callbacks
print(device_name('$DEVICE'))") || exit 2

SUMMARY=()
FAILED=0

skip() { SUMMARY+=("skipped  $1: $2"); echo "== $1: skipped, $2"; }

# part NAME SECONDS COMMAND...
part() {
  local name=$1 limit=$2 start=$SECONDS rc
  shift 2
  echo "== $name"
  timeout --kill-after=5 "$limit" "$@"
  rc=$?
  local told="$name ($((SECONDS - start)) s of $limit)"
  case $rc in
    0) SUMMARY+=("passed   $told") ;;
    124 | 137) SUMMARY+=("too slow $told") FAILED=1 ;;
    *) SUMMARY+=("failed   $told, exit $rc") FAILED=1 ;;
  esac
}

bench() {
  local name=$1 limit=$2 script=$3
  shift 3
  part "$name" "$limit" "$PYTHON" "$ROOT/benchmarks/$script.py" --device "$DEVICE" "$@"
}

tests() {
  local files
  mapfile -t files < <(grep -rl --include='*.py' 'mark\.gpu' "$ROOT/tests")
  if ! has pytest; then
    skip "GPU tests" "pytest is not installed"
  elif [ ${#files[@]} -eq 0 ]; then
    skip "GPU tests" "no test is marked gpu"
  else
    # Without the options that need plugins: pytest-timeout may be missing.
    part "GPU tests" "$1" "$PYTHON" -m pytest -q -p no:cacheprovider -o addopts= \
      -W ignore::pytest.PytestConfigWarning --rootdir "$ROOT" -c "$ROOT/pyproject.toml" \
      -m gpu "${files[@]}"
  fi
}

overhead() {  # NAME SECONDS PRECISION OPTIONS...
  local name=$1 limit=$2 precision=$3
  shift 3
  if [ "$precision" = fp8 ] && ! has torchao; then
    skip "$name" "torchao is not installed"
    return
  fi
  bench "$name" "$limit" overhead --precision "$precision" --out "$OUT" "$@"
}

if [ "$DEVICE" = cpu ]; then
  tests 150
  bench kernel 90 kernel --sizes 1K --dtypes float32 --seconds 0.05 --out "$OUT/kernel-$NAME.json"
  overhead "overhead GPT FP32" 150 fp32 --batch 1 --seconds 0 --pairs 1 --threads 1
  bench where 120 where --precision fp32 --seconds 0.1 --threads 1 --out "$OUT"
  bench scale 120 scale --slots 14 --steps --widths --rounds 1 --out "$OUT/scale-$NAME.json"
  bench soak 90 soak --steps 200 --out "$OUT/soak-$NAME.json"
else
  tests 100
  bench kernel 40 kernel --sizes 1K 64K 1M 16M 64M 256M --dtypes float32 bfloat16 \
    --seconds 0.3 --out "$OUT/kernel-$NAME.json"
  overhead "overhead GPT BF16" 60 bf16 --seconds 2 --peers
  overhead "overhead GPT BF16 compiled" 70 bf16 --seconds 2 --compile
  overhead "overhead GPT FP8" 35 fp8 --seconds 1
  overhead "overhead GPT FP16" 30 fp16 --seconds 1
  overhead "overhead CNN BF16" 30 bf16 --seconds 1 --model cnn
  bench where 25 where --precision bf16 --seconds 2 --out "$OUT"
  bench scale 60 scale --slots 100 10000 --steps 240 --widths 1024 --rounds 3 \
    --out "$OUT/scale-$NAME.json"
  bench soak 20 soak --steps 2000 --out "$OUT/soak-$NAME.json"
fi

echo
echo "on $NAME, $SECONDS s, results in $OUT"
printf '  %s\n' "${SUMMARY[@]}"
exit $FAILED
