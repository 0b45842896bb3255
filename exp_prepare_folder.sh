#!/usr/bin/env bash
# ./exp_prepare_folder.sh [EXP_NAME]   makes the folders of an experiment; the scripts also make them themselves.
set -euo pipefail
exp=exp/${1:-deep_casa_wsj}
mkdir -p "$exp"/feat/{tr,cv,tt} "$exp/models" "$exp/output_tt/files"
echo "$exp"
