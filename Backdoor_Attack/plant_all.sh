#!/usr/bin/env bash
# Plant every backdoor of Backdoor_Attack/configs whose name begins with the first argument, or those of the configs given.
#   bash Backdoor_Attack/plant_all.sh text_on_text [config.yaml ...] [flags of inject.py]
# PYTHON names the interpreter (default: the repository's .venv, or python).
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
attack="$1"
shift
python="${PYTHON:-}"
if [[ -z $python ]]; then
  python="$here/../.venv/bin/python"
  [[ -x $python ]] || python=python
fi
configs=()
for argument in "$@"; do [[ $argument == *.yaml ]] && configs+=("$argument"); done
[[ ${#configs[@]} -gt 0 ]] || set -- "$here/configs/${attack}"_*.yaml "$@"
exec "$python" "$here/inject.py" "$@"
