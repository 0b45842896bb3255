#!/usr/bin/env bash
# ./run.sh deep_casa [--preset small|original] [--stage N] [--stop_stage N] [flags...]   the whole pipeline
# ./run.sh test [pytest arguments...]                                                    installs and runs the tests
#
# Flags are handed to every script of the pipeline that has them; --simul.FLAG and --seq.FLAG to one stage of
# Deep CASA alone. PYTHON chooses the interpreter that makes .venv.
set -euo pipefail
cd "$(dirname "$0")"
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}

fail() {
  echo "error: $*" >&2
  exit 1
}

# Makes .venv and installs the package with the extras $1, unless that was done for this setup.py already.
install() {
  local extras=$1 stamp=".venv/installed_$1"
  if [ ! -x .venv/bin/python ]; then
    "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
      fail "${PYTHON:-python3} is older than Python 3.11; name a newer one with PYTHON=..."
    "${PYTHON:-python3}" -m venv .venv
  fi
  if ! cmp -s setup.py "$stamp"; then
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".[$extras]"
    cp setup.py "$stamp"
  fi
}

# Whether script $1 has the flag $2.
has_flag() {
  local files=("$1")
  case $1 in
    feat/feat_gen.py) ;;
    nn/simul_group.py | nn/seq_group.py) files+=(nn/deep_casa.py nn/train.py feat/feat_gen.py) ;;
  esac
  # The corpus has some flags once for each set.
  local any_set="[{]set_name}_${2#*_}"
  cat "${files[@]}" | tr '\n' ' ' | grep -qE "DEFINE_[a-z_]+\( *f?\"($2|$any_set)\""
}

# Runs a script of the pipeline with those of the user's flags that it has; $1 is "simul", "seq" or "all".
script() {
  local stage=$1 path=$2 flag name
  shift 2
  local chosen=("$@")
  for flag in "${user_flags[@]}"; do
    name=${flag#--}
    case $name in
      simul.* | seq.*)
        [ "${name%%.*}" = "$stage" ] || continue
        name=${name#*.}
        ;;
    esac
    local key=${name%%=*}
    if has_flag "$path" "$key" || has_flag "$path" "${key#no}"; then
      chosen+=("--$name")
    fi
  done
  echo "+ python $path ${chosen[*]}"
  .venv/bin/python "$path" "${chosen[@]}"
}

deep_casa() {
  local preset=small stage=1 stop_stage=7 own_corpus=1 causal="" pit=frame
  local data=corpus lists=corpus/lists exp_name=deep_casa time_stamp=test
  user_flags=()
  while [ $# -gt 0 ]; do
    case $1 in
      --*=*) flag=$1 ;;
      --*) if [ $# -gt 1 ] && [ "${2#--}" = "$2" ]; then flag=$1=$2 && shift; else flag=$1; fi ;;
      *) fail "$1: unexpected; flags are given as --name value" ;;
    esac
    shift
    local name=${flag#--} value=${flag#*=}
    name=${name%%=*}
    case $name in
      preset) preset=$value ;;
      stage) stage=$value ;;
      stop_stage) stop_stage=$value ;;
      data_folder) data=$value own_corpus= ;;
      wav_list_folder) lists=$value own_corpus= ;;
      exp_name) exp_name=$value ;;
      time_stamp) time_stamp=$value ;;
      is_deploy | resume_model | simul_model) fail "--$name is set by the stages; run the script itself to give it" ;;
      *)
        local known= key=${name#simul.} path
        key=${key#seq.}
        for path in feat/voices.py feat/feat_gen.py nn/simul_group.py nn/seq_group.py nn/evaluate.py; do
          if has_flag $path "$key" || has_flag $path "${key#no}"; then known=1; fi
        done
        [ -n "$known" ] || fail "--$name: no script of the pipeline has this flag"
        [ "$flag" = "--pit=utterance" ] && pit=utterance
        user_flags+=("$flag")
        ;;
    esac
  done

  local common=(--data_folder="$data" --wav_list_folder="$lists" --exp_name="$exp_name")
  local corpus_flags=() feature_sets=tr,cv,tt simul_flags=() seq_flags=() stft_flags=()
  local models=exp/$exp_name/models
  case $preset in
    small) # Small enough for two CPU cores; every number was tried on the built-in corpus.
      corpus_flags=(--tr_talkers=200 --tr_mixtures=1000 --cv_mixtures=20 --tt_mixtures=60)
      feature_sets=cv,tt
      stft_flags=(--hop_size=128)
      local small=(--n_layers=3 --dynamic_mixing --lr_schedule=cosine --keep_checkpoints=2 --clip_norm=5)
      simul_flags=("${small[@]}" --n_channels=16 --keep_prob=1 --segment_seconds=3 --batch_size=1
        --learning_rate=4e-3 --epoch=1)
      seq_flags=("${small[@]}" --n_tcn_block=3 --n_dilation_each_block=6 --n_dilated_units=128 --n_bottle=64
        --embedding_dim=20 --keep_prob=0.9 --segment_seconds=4 --batch_size=4 --learning_rate=1e-3 --beta_2=0.99
        --epoch=4)
      ;;
    original) ;; # the scripts' own defaults
    *) fail "--preset $preset: there are small and original" ;;
  esac
  [ -z "$own_corpus" ] && feature_sets=tr,cv,tt
  local dynamic=()
  case " ${seq_flags[*]} ${user_flags[*]} " in
    *" --dynamic_mixing "* | *" --on_the_fly "*) dynamic=(--simul_model="$models/${time_stamp}_simul/best") ;;
  esac

  install corpus
  local start=$SECONDS
  mkdir -p exp
  run_stage() { [ "$stage" -le "$1" ] && [ "$stop_stage" -ge "$1" ] && echo "== stage $1: $2 (after $((SECONDS - start)) s)"; }

  if run_stage 1 "corpus"; then
    if [ -n "$own_corpus" ]; then
      script all feat/voices.py --corpus_folder="$data" "${corpus_flags[@]}"
    else
      echo "$data: given, nothing to make"
    fi
  fi
  if run_stage 2 "features"; then
    script all feat/feat_gen.py "${common[@]}" "${stft_flags[@]}" --sets=$feature_sets
  fi
  if run_stage 3 "training of simultaneous grouping"; then
    script simul nn/simul_group.py "${common[@]}" "${stft_flags[@]}" "${simul_flags[@]}" \
      --time_stamp="${time_stamp}_simul" --is_deploy=0
  fi
  local simul=(nn/simul_group.py "${common[@]}" "${stft_flags[@]}" "${simul_flags[@]}"
    --resume_model="$models/${time_stamp}_simul/best")
  if [ $pit = frame ] && run_stage 4 "estimates for sequential grouping"; then
    script simul "${simul[@]}" --is_deploy=2 --export_sets=$feature_sets
  fi
  if [ $pit = frame ] && run_stage 5 "training of sequential grouping"; then
    script seq nn/seq_group.py "${common[@]}" "${stft_flags[@]}" "${seq_flags[@]}" "${dynamic[@]}" \
      --time_stamp="${time_stamp}_seq" --is_deploy=0
  fi
  if run_stage 6 "inference"; then
    script simul "${simul[@]}" --is_deploy=1
    if [ $pit = frame ]; then
      script seq nn/seq_group.py "${common[@]}" "${stft_flags[@]}" "${seq_flags[@]}" "${dynamic[@]}" \
        --resume_model="$models/${time_stamp}_seq/best" --is_deploy=1
    fi
  fi
  if run_stage 7 "evaluation"; then
    local estimates=()
    [ $pit = frame ] && estimates=(--estimates="stage 1, oracle order=exp/$exp_name/output_tt/oracle_order")
    script all nn/evaluate.py --output_folder="exp/$exp_name/scores" \
      "${estimates[@]}" --estimates="final=exp/$exp_name/output_tt/files"
    cat <<EOF

separated wavs         exp/$exp_name/output_tt/files
spectrogram pictures   $models/${time_stamp}_simul/pictures  $models/${time_stamp}_seq/pictures
TensorBoard logs       .venv/bin/tensorboard --logdir $models
scores                 exp/$exp_name/scores
EOF
  fi
  echo "done in $((SECONDS - start)) s"
}

case ${1:-} in
  deep_casa)
    shift
    deep_casa "$@"
    ;;
  test)
    shift
    install test
    # A process for each core; the tests of a file stay together, as they share what is slow to make.
    exec .venv/bin/python -m pytest --numprocesses=auto --dist=loadfile "$@"
    ;;
  *) fail "usage: ./run.sh deep_casa [flags...] | ./run.sh test [pytest arguments...]" ;;
esac
