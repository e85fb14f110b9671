#!/usr/bin/env bash
# The native core and the C reader with the address and undefined-behaviour sanitizers, through all vectors and their tests.
# Stops at the first finding. Arguments go to pytest in the place of the usual tests.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
folder=${SANITIZE_FOLDER:-$root/build/sanitize}
sanitize="-fsanitize=address,undefined -fno-sanitize-recover=all"

rm -rf "$folder" && mkdir -p "$folder"
# A copy of the tree, whose core is found before the installed one.
cp -r "$root"/{ddct_format,spec,tests,examples,pyproject.toml} "$folder"
cd "$folder"
rm -f ddct_format/native/_core*.so
include=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
# shellcheck disable=SC2086
"${CC:-gcc}" -std=c11 -O1 -g -fno-omit-frame-pointer -ffp-contract=off -fwrapv $sanitize -shared -fPIC -pthread \
  -I"$include" -Ispec/readers/c -o ddct_format/native/_core.abi3.so \
  ddct_format/native/src/*.c spec/readers/c/*kernels.c

export ASAN_OPTIONS=detect_leaks=0 OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
export MAKEFLAGS="-- EXTRA_CFLAGS=${sanitize// /\\ } EXTRA_LDFLAGS=${sanitize// /\\ }"
preload="$("${CC:-gcc}" -print-file-name=libasan.so):$("${CC:-gcc}" -print-file-name=libubsan.so)"
tests=(tests/parity tests/codec tests/encode/test_packing.py)
for set in amx vbmi2 avx512 avx2 portable; do
  [ $set = portable ] || grep -q "^flags.*$set" /proc/cpuinfo || continue
  [ $set = portable ] && tests=(tests/spec "${tests[@]}") # and with it the C reader, which has no sets
  [ $# -eq 0 ] || tests=("$@")
  echo "== $set"
  export DDCT_NATIVE=$set
  LD_PRELOAD=$preload "$python" -c 'import ddct_format, sys; assert ddct_format.__file__.startswith(sys.argv[1])' "$folder"
  LD_PRELOAD=$preload "$python" -m pytest -q -p no:cacheprovider -n "${PYTEST_WORKERS:-0}" "${tests[@]}"
done
