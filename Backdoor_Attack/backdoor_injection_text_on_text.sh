#!/usr/bin/env bash
# Plant every text-on-text backdoor of Backdoor_Attack/configs, or those of the configs given; finished ones are skipped.
#   bash Backdoor_Attack/backdoor_injection_text_on_text.sh [config.yaml ...] [flags of inject.py]
exec bash "$(dirname "${BASH_SOURCE[0]}")/plant_all.sh" text_on_text "$@"
