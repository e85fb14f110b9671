#!/usr/bin/env bash
# Fuzz every reader for FUZZ_SECONDS each; stops at the first finding, which libFuzzer leaves as crash-* in the folder.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
seconds=${FUZZ_SECONDS:-60}
python=${PYTHON:-$root/.venv/bin/python}
folder=${FUZZ_FOLDER:-$root/build/fuzz}
mkdir -p "$folder" && cd "$folder"
export OMP_NUM_THREADS=1 PYTHONPATH=${PYTHONPATH:-}

"$python" -c 'import atheris' 2>/dev/null || "$python" -m pip install --quiet atheris
"$python" "$root/tests/fuzz/seeds.py" corpus
echo "== structure: ddct_format and the Python reader"
"$python" "$root/tests/fuzz/fuzz_structure.py" -max_total_time="$seconds" -timeout=30 -max_len=8192 -len_control=0
echo "== bytes: ddct_format and the Python reader"
"$python" "$root/tests/fuzz/fuzz_bytes.py" -max_total_time="$seconds" -timeout=30 -max_len=65536 corpus

if ! command -v "${CLANG:=clang}" >/dev/null; then
  echo "== C reader: skipped, no clang on this machine (set CLANG)"
  exit 0
fi
reader=$root/spec/readers/c
"$python" "$root/tests/fuzz/seeds.py" corpus-raw --raw
sources=$(ls "$reader"/ddct*.c | grep -v -e ddct-cat -e ddct-test)
# shellcheck disable=SC2086
"$CLANG" -std=c11 -g -O1 -ffp-contract=off -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
  -I"$reader" -o fuzz_ddct "$root/tests/fuzz/fuzz_ddct.c" $sources ${ZSTD_LIBS:--lzstd} -lm
echo "== C reader"
./fuzz_ddct -max_total_time="$seconds" -timeout=2 -rss_limit_mb=512 -max_len=65536 corpus-raw
