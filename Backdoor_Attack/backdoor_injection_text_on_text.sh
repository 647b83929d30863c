#!/usr/bin/env bash
# Plant every text-on-text backdoor of Backdoor_Attack/configs, or those of the configs given; finished ones are skipped.
#   bash Backdoor_Attack/backdoor_injection_text_on_text.sh [config.yaml ...] [flags of inject.py]
# PYTHON names the interpreter (default: the repository's .venv, or python).
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="${PYTHON:-}"
if [[ -z $python ]]; then
  python="$here/../.venv/bin/python"
  [[ -x $python ]] || python=python
fi
configs=()
for argument in "$@"; do [[ $argument == *.yaml ]] && configs+=("$argument"); done
[[ ${#configs[@]} -gt 0 ]] || set -- "$here"/configs/text_on_text_*.yaml "$@"
exec "$python" "$here/inject.py" "$@"
