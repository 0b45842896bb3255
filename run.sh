#!/usr/bin/env bash
# ./run.sh deep_casa [--preset small|original] [--stage N] [--stop_stage N] [flags...]   separates all talkers
# ./run.sh spex_plus [--preset small|original] [--stage N] [--stop_stage N] [flags...]   extracts one talker
# ./run.sh binaural [--kind 2speakers|3speakers|noise|reverb] [--preset small|original] [--stage N] [--stop_stage N]
#   [--configurations all|VARIANT,VARIANT,...] [flags...]                                separates talkers for two ears
# ./run.sh looking_to_listen [--preset small|original] [--stage N] [--stop_stage N] [flags...]   separates the voices
#   of faces that are seen
# ./run.sh diffsep [--preset small|original] [--stage N] [--stop_stage N] [flags...]     separates talkers, and enhances
#   noisy speech, by diffusion
# ./run.sh test [pytest arguments...]                                                    installs and runs the tests
# ./run.sh lint                                                                          installs and runs ruff
#
# Each is the whole pipeline. Flags are handed to every script of it that has them; --simul.FLAG and --seq.FLAG to one
# stage of Deep CASA alone, --tr.FLAG, --cv.FLAG and --tt.FLAG to the making of one set of triplets, --separation.FLAG
# and --enhancement.FLAG to one of the two networks of DiffSep. PYTHON chooses the interpreter that makes .venv.
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
  local shared=/dev/null others=
  local training="nn/training/flags.py nn/training/devices.py"
  case $1 in
    feat/feat_gen.py) shared=feat/corpora/features.py ;;
    nn/simul_group.py | nn/seq_group.py) shared="nn/systems/deep_casa/training.py $training feat/corpora/features.py" ;;
    nn/spex_plus.py) shared="nn/systems/spex_plus/training.py $training" ;;
    nn/binaural_tasnet.py) shared="nn/systems/binaural_tasnet/training.py $training" ;;
    nn/looking_to_listen.py) shared="nn/systems/looking_to_listen/training.py $training" ;;
    nn/diffsep.py) shared="nn/systems/diffsep/training.py nn/systems/diffsep/flags.py $training" ;;
    nn/diffsep_evaluate.py) shared=nn/systems/diffsep/flags.py ;;
  esac
  # What the shared files of Deep CASA define for stage 2 alone.
  [ "$1" != nn/simul_group.py ] || others='/^def define_grouping_flags/,/^$/d'
  local any_set=$2
  # The corpus has some flags once for each set.
  case $2 in tr_* | cv_* | tt_* | train_* | val_* | test_*) any_set="[{][a-z_]*name}_${2#*_}" ;; esac
  { cat "$1" && sed "$others" $shared; } | tr '\n' ' ' | grep -qE "DEFINE_[a-z_]+\( *f?\"($2|$any_set)\""
}

# Takes the flags of a pipeline: `given` gets all of them as --name=value, user_flags those that are for its scripts.
# $1: flags that are not handed on; $2: flags that the stages set; $3: stages that flags may be for alone; $4: scripts.
read_flags() {
  local not_handed_on=" preset stage stop_stage exp_name time_stamp $1 " set_by_stages=" $2 " stages=" $3 " scripts=$4
  shift 4
  given=() user_flags=()
  local flag name path known
  while [ $# -gt 0 ]; do
    case $1 in
      --*=*) flag=$1 ;;
      --*) if [ $# -gt 1 ] && [ "${2#--}" = "$2" ]; then flag=$1=$2 && shift; else flag=$1; fi ;;
      *) fail "$1: unexpected; flags are given as --name value" ;;
    esac
    shift
    given+=("$flag")
    name=${flag#--}
    name=${name%%=*}
    case $name=$flag in
      stage=--stage | stop_stage=--stop_stage | preset=--preset | exp_name=--exp_name | time_stamp=--time_stamp)
        fail "$flag: a value is missing; give $flag VALUE"
        ;;
    esac
    case $not_handed_on in *" $name "*) continue ;; esac
    case $stages in *" ${name%%.*} "*) name=${name#*.} ;; esac
    case $set_by_stages in
      *" $name "*) fail "--$name is set by the stages; run the script itself to give it" ;;
    esac
    known=
    for path in $scripts; do
      if has_flag "$path" "$name" || has_flag "$path" "${name#no}"; then known=1; fi
    done
    [ -n "$known" ] || fail "--$name: no script of the pipeline has this flag"
    user_flags+=("$flag")
  done
  preset=$(value_of preset small) stage=$(value_of stage 1) stop_stage=$(value_of stop_stage 9)
  time_stamp=$(value_of time_stamp test)
  for name in stage stop_stage; do
    case ${!name} in
      "" | *[!0-9]* | ?????*) fail "--$name ${!name}: should be the number of a stage, such as --$name 3" ;;
    esac
  done
}

# The value that flag $1 was given, or else $2.
value_of() {
  local flag value=$2
  for flag in "${given[@]}"; do
    case $flag in --"$1"=*) value=${flag#*=} ;; esac
  done
  echo "$value"
}

# Folder of the wavs of a rate in Hz, as feat/corpora/lists.py names it: wav8k, wav22.05k.
rate_folder() {
  local thousandths=$(($1 % 1000 + 1000))
  local part=${thousandths#1}
  while [ "${part%0}" != "$part" ]; do part=${part%0}; done
  echo "wav$(($1 / 1000))${part:+.$part}k"
}

# Whether the switch $2 is on for the stage $1 of what follows, flags the last of which counts.
is_on() {
  local only=$1 name=$2 flag on=
  shift 2
  for flag in "$@"; do
    case ${flag/#"--$only."/--} in
      --"$name" | --"$name"=[tT1]*) on=1 ;;
      --no"$name" | --"$name"=[fF0]*) on= ;;
    esac
  done
  [ -n "$on" ]
}

# Whether stage $1, called $2, should run; says so.
run_stage() {
  [ "$stage" -le "$1" ] && [ "$stop_stage" -ge "$1" ] && echo "== stage $1: $2 (after $((SECONDS - start)) s)"
}

# Says where the results lie: what $1 is, and where; pictures, logs, scores.
say_where() {
  printf '\n%-22s %s\n' "$1" "$2" "spectrogram pictures" "$3" "TensorBoard logs" ".venv/bin/tensorboard --logdir $4" \
    scores "$5" | sed '2,${/^$/d}'
}

# Runs a script of the pipeline with those of the user's flags that it has; $1 is the stage that a flag may be for
# alone, or "all".
script() {
  local only=$1 path=$2 flag name key
  shift 2
  local chosen=("$@")
  for flag in "${user_flags[@]}"; do
    name=${flag#--}
    key=${name%%=*}
    case $key in
      *.*)
        [ "${key%%.*}" = "$only" ] || continue
        name=${name#*.}
        key=${key#*.}
        ;;
    esac
    if has_flag "$path" "$key" || has_flag "$path" "${key#no}"; then
      chosen+=("--$name")
    fi
  done
  echo "+ python $path ${chosen[*]}"
  .venv/bin/python "$path" "${chosen[@]}"
}

# Synthesises single talkers at $rate below $data, with flags, unless $1 says what was given instead.
make_talkers() {
  local given_instead=$1
  shift
  if [ -z "$given_instead" ]; then
    script all feat/voices.py --corpus_folder="$data/talkers" --sample_rate="$rate" "$@" \
      --tr_mixtures=0 --cv_mixtures=0 --tt_mixtures=0
  else
    echo "$given_instead: given, nothing to make"
  fi
}

deep_casa() {
  local preset stage stop_stage time_stamp given user_flags
  read_flags "data_folder wav_list_folder" "is_deploy resume_model simul_model" "simul seq" \
    "feat/voices.py feat/feat_gen.py nn/simul_group.py nn/seq_group.py nn/evaluate.py" "$@"
  local data lists exp_name pit own_corpus=
  data=$(value_of data_folder corpus) lists=$(value_of wav_list_folder corpus/lists)
  exp_name=$(value_of exp_name deep_casa) pit=$(value_of simul.pit "$(value_of pit frame)")
  [ -n "$(value_of data_folder "")$(value_of wav_list_folder "")" ] || own_corpus=1

  local common=(--data_folder="$data" --wav_list_folder="$lists" --exp_name="$exp_name")
  local corpus_flags=() simul_flags=() seq_flags=() stft_flags=()
  local models=exp/$exp_name/models
  case $preset in
    small) # Small enough for two CPU cores; every number was tried on the built-in corpus.
      corpus_flags=(--tr_talkers=200 --tr_mixtures=1000 --cv_mixtures=20 --tt_mixtures=60)
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
  # What each stage reads from files of features: nothing on the fly, and no training set that is mixed from the wavs.
  local simul_sets=tr,cv,tt seq_sets=tr,cv,tt feature_sets simul_model=() pictures=$models/${time_stamp}_simul/pictures
  ! is_on simul dynamic_mixing "${simul_flags[@]}" "${user_flags[@]}" || simul_sets=cv,tt
  ! is_on simul on_the_fly "${simul_flags[@]}" "${user_flags[@]}" || simul_sets=
  ! is_on seq dynamic_mixing "${seq_flags[@]}" "${user_flags[@]}" || seq_sets=cv,tt
  ! is_on seq on_the_fly "${seq_flags[@]}" "${user_flags[@]}" || seq_sets=
  # What it does not read it makes by the first stage.
  [ "$seq_sets" = tr,cv,tt ] || simul_model=(--simul_model="$models/${time_stamp}_simul/best")
  if [ "$pit" = frame ]; then
    pictures+="  $models/${time_stamp}_seq/pictures"
  else
    seq_sets=
  fi
  case "$simul_sets $seq_sets" in
    *tr,*) feature_sets=tr,cv,tt ;;
    *cv,*) feature_sets=cv,tt ;;
    *) feature_sets= ;;
  esac

  install corpus
  local start=$SECONDS
  mkdir -p exp

  if run_stage 1 "corpus"; then
    if [ -n "$own_corpus" ]; then
      script all feat/voices.py --corpus_folder="$data" "${corpus_flags[@]}"
    else
      echo "$data: given, nothing to make"
    fi
  fi
  if run_stage 2 "features"; then
    if [ -n "$feature_sets" ]; then
      script all feat/feat_gen.py "${common[@]}" "${stft_flags[@]}" --sets=$feature_sets
    else
      echo "computed from the wavs on the fly, nothing to make"
    fi
  fi
  if run_stage 3 "training of simultaneous grouping"; then
    script simul nn/simul_group.py "${common[@]}" "${stft_flags[@]}" "${simul_flags[@]}" \
      --time_stamp="${time_stamp}_simul" --is_deploy=0
  fi
  local simul=(nn/simul_group.py "${common[@]}" "${stft_flags[@]}" "${simul_flags[@]}"
    --resume_model="$models/${time_stamp}_simul/best")
  if [ "$pit" = frame ] && run_stage 4 "estimates for sequential grouping"; then
    if [ -n "$seq_sets" ]; then
      script simul "${simul[@]}" --is_deploy=2 --export_sets=$seq_sets
    else
      echo "made by the first stage on the fly, nothing to write"
    fi
  fi
  if [ "$pit" = frame ] && run_stage 5 "training of sequential grouping"; then
    script seq nn/seq_group.py "${common[@]}" "${stft_flags[@]}" "${seq_flags[@]}" "${simul_model[@]}" \
      --time_stamp="${time_stamp}_seq" --is_deploy=0
  fi
  if run_stage 6 "inference"; then
    script simul "${simul[@]}" --is_deploy=1
    if [ "$pit" = frame ]; then
      script seq nn/seq_group.py "${common[@]}" "${stft_flags[@]}" "${seq_flags[@]}" "${simul_model[@]}" \
        --resume_model="$models/${time_stamp}_seq/best" --is_deploy=1
    fi
  fi
  if run_stage 7 "evaluation"; then
    local estimates=()
    [ "$pit" = frame ] && estimates=(--estimates="stage 1, oracle order=exp/$exp_name/output_tt/oracle_order")
    script all nn/evaluate.py --data_folder="$data" --wav_list_folder="$lists" --output_folder="exp/$exp_name/scores" \
      "${estimates[@]}" --estimates="final=exp/$exp_name/output_tt/files"
    say_where "separated wavs" "exp/$exp_name/output_tt/files" "$pictures" "$models" "exp/$exp_name/scores"
  fi
  echo "done in $((SECONDS - start)) s"
}

spex_plus() {
  local preset stage stop_stage time_stamp given user_flags
  local set_by_stages="is_deploy resume_model nodynamic_mixing output_folder test set mixture enrolment output"
  read_flags "data_folder corpus_folder dynamic_mixing" "$set_by_stages" "tr cv tt" \
    "feat/voices.py feat/librispeech_mix.py nn/spex_plus.py" "$@"
  local own_data own_talkers data talkers exp_name variant rate=16000 set_name
  own_data=$(value_of data_folder "") own_talkers=$(value_of corpus_folder "") exp_name=$(value_of exp_name spex_plus)
  data=${own_data:-triplets}

  local voices_flags=() sets="tr cv tt" cv_flags=(--nfiles=1000) tt_flags=(--test) train_flags=() mixing=()
  case $preset in
    small) # Small enough for two CPU cores; every number was tried on the built-in corpus.
      [ -z "$(value_of config "")" ] || fail "--config: sets what --preset small does too; add --preset original"
      variant=$(value_of variant authors)
      voices_flags=(--tr_talkers=400 --utterances_per_talker=4)
      sets="cv tt" cv_flags=(--test --nfiles=40) tt_flags=(--test --nfiles=100)
      train_flags=(--filterbank=fourier --windows_ms=16,24,32 --n_bottle=64 --n_units=128 --n_blocks=6 --n_repeats=2
        --embedding_dim=64 --n_speaker_units=64 --l2=0 --lr_schedule=cosine --learning_rate=3e-3 --clip_norm=5
        --batch_size=4 --segment_seconds=2 --enrolment_seconds=3 --keep_checkpoints=2)
      mixing=(--both_talkers --snr_db=-5,5 --epoch=8 --epoch_mixtures=2000)
      ;;
    original) # the scripts' own defaults, or those of --config
      case $(value_of config "") in *.py) variant=authors ;; *) variant=seed ;; esac
      variant=$(value_of variant "$variant")
      ;;
    *) fail "--preset $preset: there are small and original" ;;
  esac
  # Where there are recordings of single talkers, the small preset mixes them anew at every step.
  local dynamic=
  case " $preset ${given[*]} " in
    *" --dynamic_mixing"[\ =]*) dynamic=1 ;;
    " small "*) [ -n "$own_data" ] && [ -z "$own_talkers" ] || dynamic=1 ;;
  esac
  [ "$variant" = authors ] && rate=8000
  rate=$(value_of sample_rate $rate)
  talkers=${own_talkers:-$data/talkers/voices/$(rate_folder "$rate")}
  local common=(--variant="$variant" --data_folder="$data" --exp_name="$exp_name" --time_stamp="$time_stamp")
  [ -n "$(value_of config "")" ] || common+=(--sample_rate="$rate")
  local models=exp/$exp_name/models output=exp/$exp_name/output_tt

  install corpus
  local start=$SECONDS
  if run_stage 1 "talkers"; then
    make_talkers "${own_talkers:-$own_data}" "${voices_flags[@]}"
  fi
  if run_stage 2 "triplets"; then
    if [ -z "$own_data" ]; then
      for set_name in $sets; do
        local set_flags=()
        [ $set_name = cv ] && set_flags=("${cv_flags[@]}")
        [ $set_name = tt ] && set_flags=("${tt_flags[@]}")
        script "$set_name" feat/librispeech_mix.py --corpus_folder="$talkers/$set_name" \
          --output_folder="$data/$set_name" --sample_rate="$rate" "${set_flags[@]}"
      done
    else
      echo "$data: given, nothing to make"
    fi
  fi
  if run_stage 3 "training"; then
    [ -z "$dynamic" ] || train_flags+=("${mixing[@]}" --dynamic_mixing --corpus_folder="$talkers/tr")
    script all nn/spex_plus.py "${common[@]}" "${train_flags[@]}" --is_deploy=0
  fi
  if run_stage 4 "extraction and evaluation"; then
    script all nn/spex_plus.py "${common[@]}" --is_deploy=1
    say_where "extracted wavs" "$output/files" "$models/$time_stamp/pictures" "$models" "$output/scores"
  fi
  echo "done in $((SECONDS - start)) s"
}

binaural() {
  local preset stage stop_stage time_stamp given user_flags
  local read_here="data_folder corpus_folder kind variant talkers dynamic_mixing sample_rate mode"
  local set_by_stages="is_deploy resume_model nodynamic_mixing output_folder corpus_root sample_rates modes mixture"
  read_flags "$read_here configurations tr_mixtures cv_mixtures tt_mixtures" "$set_by_stages" "" \
    "feat/voices.py feat/binaural_mix.py nn/binaural_tasnet.py" "$@"
  if [ -n "$(value_of configurations "")" ]; then
    binaural_configurations
    return
  fi
  local kind talkers variant data own_data own_talkers corpus rate mode exp_name published
  talkers=$(value_of talkers 2) variant=$(value_of variant "") kind=$(value_of kind "")
  case $variant in
    parallel-*) kind=${kind:-${variant#parallel-}} ;;
    *) kind=${kind:-${talkers}speakers} ;;
  esac
  case $kind in
    2speakers | 3speakers) talkers=$(value_of talkers "${kind%speakers}") variant=${variant:-parallel} ;;
    noise | reverb) variant=${variant:-parallel-$kind} ;;
    *) fail "--kind $kind: there are 2speakers, 3speakers, noise and reverb" ;;
  esac
  case "$kind $talkers $variant" in
    "noise 2 parallel-noise" | "reverb 2 parallel-reverb") ;;
    "2speakers 2 "*-* | "3speakers 3 "*-*) fail "--variant $variant: not for --kind $kind" ;;
    "2speakers 2 "* | "3speakers 3 "*) ;;
    *) fail "--kind $kind does not go with --talkers $talkers and --variant $variant" ;;
  esac
  own_data=$(value_of data_folder "") own_talkers=$(value_of corpus_folder "")
  published=$(value_of metadata_folder "")
  exp_name=$(value_of exp_name "binaural_$kind") rate=$(value_of sample_rate 8000) mode=$(value_of mode min)
  data=${own_data:-binaural}
  corpus=${own_talkers:-$data/talkers/voices/$(rate_folder "$rate")}

  local voices_flags=() mix_flags=() train_flags=() mixing=() sets=tr,cv,tt dynamic=
  case $preset in
    small) # Small enough for two CPU cores; every number was tried on the built-in corpus.
      voices_flags=(--tr_talkers=400 --utterances_per_talker=4)
      mix_flags=(--tr_mixtures=3000 --cv_mixtures=20 --tt_mixtures=100)
      train_flags=(--filterbank=fourier --window=$((rate / 125 * 2)) --n_filters=$((rate / 125 * 4)) --n_bottle=64
        --n_units=128 --n_blocks=6 --n_repeats=2 --nospeed_perturb --lr_schedule=cosine --learning_rate=2e-3
        --batch_size=4 --segment_seconds=2 --epoch=4 --keep_checkpoints=2)
      mixing=(--epoch_mixtures=3000)
      # Where there are recordings of single talkers, they are mixed anew at every step.
      if [ -z "$published$(value_of brir_folder "")" ]; then
        [ -n "$own_data" ] && [ -z "$own_talkers" ] || dynamic=1
      fi
      ;;
    original) ;; # the scripts' own defaults
    *) fail "--preset $preset: there are small and original" ;;
  esac
  case " ${given[*]} " in *" --dynamic_mixing"[\ =]*) dynamic=1 ;; esac
  [ -z "$dynamic" ] || sets=cv,tt
  local number
  for number in tr_mixtures cv_mixtures tt_mixtures; do
    [ -z "$(value_of $number "")" ] || mix_flags+=("--$number=$(value_of $number "")")
  done
  local from=(--corpus_root="$corpus")
  [ -z "$published" ] || from=()
  local common=(--variant="$variant" --talkers="$talkers" --sample_rate="$rate" --mode="$mode" --data_folder="$data"
    --exp_name="$exp_name" --time_stamp="$time_stamp")
  local models=exp/$exp_name/models output=exp/$exp_name/output_$(value_of set tt)

  # Rooms are simulated unless responses of recorded ones are given.
  if [ "$kind" = reverb ] && [ -z "$own_data$(value_of brir_folder "")" ]; then
    install corpus,room
  else
    install corpus
  fi
  local start=$SECONDS
  if run_stage 1 "talkers"; then
    make_talkers "${published:-${own_talkers:-$own_data}}" "${voices_flags[@]}"
  fi
  if run_stage 2 "binaural mixtures"; then
    if [ -z "$own_data" ]; then
      script all feat/binaural_mix.py "${from[@]}" --output_folder="$data" --kind="$kind" --sample_rates="$rate" \
        --modes="$mode" --sets=$sets "${mix_flags[@]}"
    else
      echo "$data: given, nothing to make"
    fi
  fi
  if run_stage 3 "training"; then
    [ -z "$dynamic" ] || train_flags+=("${mixing[@]}" --dynamic_mixing --corpus_folder="$corpus")
    script all nn/binaural_tasnet.py "${common[@]}" "${train_flags[@]}" --is_deploy=0
  fi
  if run_stage 4 "separation and evaluation"; then
    script all nn/binaural_tasnet.py "${common[@]}" --is_deploy=1
    say_where "separated wavs" "$output/audio_results" "$models/$time_stamp/pictures" "$models" "$output"
  fi
  echo "done in $((SECONDS - start)) s"
}

# Runs `binaural` with the flags in `given` for every variant of --configurations, and joins their tables.
binaural_configurations() {
  local names flag rest=() variant exp_name folder tables=() table
  names=$(value_of configurations "") exp_name=$(value_of exp_name binaural)
  if [ "$names" = all ]; then
    names=independent,cross,parallel
    # Noise and rooms are mixtures of another kind, of two talkers.
    [ -n "$(value_of kind "")$(value_of talkers "")" ] || names+=,parallel-noise,parallel-reverb
  fi
  [ -z "$(value_of variant "")" ] || fail "--variant does not go with --configurations, which names them"
  for flag in "${given[@]}"; do
    case $flag in --configurations=* | --exp_name=*) ;; *) rest+=("$flag") ;; esac
  done
  for variant in ${names//,/ }; do
    echo "=== $variant"
    binaural "${rest[@]}" --variant="$variant" --exp_name="${exp_name}_$variant"
    tables+=("exp/${exp_name}_$variant/output_$(value_of set tt)/table.txt")
  done
  [ "$stop_stage" -ge 4 ] || return 0
  folder=exp/${exp_name}_configurations
  mkdir -p "$folder"
  # The head, a line of each, and once what the columns mean.
  {
    sed 2q "${tables[0]}"
    for table in "${tables[@]}"; do sed -n 3p "$table"; done
    sed 1,3d "${tables[0]}"
  } > "$folder/.table.txt"
  mv "$folder/.table.txt" "$folder/table.txt"
  printf '\n=== %s/table.txt\n' "$folder"
  cat "$folder/table.txt"
}

looking_to_listen() {
  local preset stage stop_stage time_stamp given user_flags
  local set_by_stages="is_deploy resume_model nodynamic_mixing table list output_dir video swap_faces"
  read_flags "data_folder video_list dynamic_mixing" "$set_by_stages" "" \
    "feat/avspeech/talking_faces.py feat/avspeech/crop.py feat/avspeech/cut_audio.py feat/avspeech/embed_faces.py
     feat/avspeech/mix.py feat/avspeech/clean.py nn/looking_to_listen.py" "$@"
  local own_data own_list data list exp_name
  own_data=$(value_of data_folder "") own_list=$(value_of video_list "") exp_name=$(value_of exp_name looking_to_listen)
  data=${own_data:-faces} list=${own_list:-$data/list.csv}

  local corpus_flags=() clip_flags=() face_flags=() mix_flags=() train_flags=() dynamic=1 drawn=
  [ -n "$own_data$own_list" ] || drawn=1
  # Where the drawn faces are is known; a detector that knows real ones finds only some of them.
  [ -z "$drawn" ] || face_flags=(--detector=told)
  case $preset in
    small) # Small enough for two CPU cores; every number was tried on the built-in corpus.
      corpus_flags=(--tr_talkers=120 --cv_talkers=15 --tt_talkers=20 --segments=2)
      clip_flags=(--preset=ultrafast) # of x264
      mix_flags=(--train_mixtures=1000 --val_mixtures=20 --test_mixtures=60)
      train_flags=(--preset=small --dropout=0 --loss=both --wave_weight=0.1 --segment_seconds=1.5 --batch_size=4
        --learning_rate=2e-3 --lr_schedule=cosine --epoch=4 --epoch_mixtures=800 --keep_checkpoints=2)
      ;;
    original) dynamic= ;; # the scripts' own defaults
    *) fail "--preset $preset: there are small and original" ;;
  esac
  case " ${given[*]} " in *" --dynamic_mixing"[\ =]*) dynamic=1 ;; esac
  local folder=(--data_folder="$data") video_flags=()
  [ -z "$drawn" ] || video_flags=(--video_folder="$data/videos")
  local models=exp/$exp_name/models output=exp/$exp_name/output_test

  install corpus,faces
  local start=$SECONDS
  if run_stage 1 "talking faces"; then
    if [ -n "$drawn" ]; then
      script all feat/avspeech/talking_faces.py "${folder[@]}" "${corpus_flags[@]}"
    else
      echo "${own_list:-$own_data}: given, nothing to make"
    fi
  fi
  if run_stage 2 "clips, pieces of sound, faces"; then
    if [ -f "$list" ]; then
      script all feat/avspeech/crop.py --list="$list" "${folder[@]}" "${video_flags[@]}" "${clip_flags[@]}"
    else
      echo "$list: not there, so the clips in $data are taken"
    fi
    script all feat/avspeech/cut_audio.py "${folder[@]}"
    script all feat/avspeech/embed_faces.py "${folder[@]}" "${face_flags[@]}"
  fi
  if run_stage 3 "mixtures"; then
    script all feat/avspeech/mix.py "${folder[@]}" "${mix_flags[@]}"
    script all feat/avspeech/clean.py "${folder[@]}"
  fi
  if run_stage 4 "training"; then
    [ -z "$dynamic" ] || train_flags+=(--dynamic_mixing)
    script all nn/looking_to_listen.py "${folder[@]}" --exp_name="$exp_name" --time_stamp="$time_stamp" \
      "${train_flags[@]}" --is_deploy=0
  fi
  if run_stage 5 "separation and evaluation"; then
    local table=test.csv
    [ -f "$data/test.csv" ] || table=val.csv output=exp/$exp_name/output_val
    script all nn/looking_to_listen.py "${folder[@]}" --exp_name="$exp_name" --time_stamp="$time_stamp" \
      --resume_model="$models/$time_stamp/best" --is_deploy=1 --swap_faces --table=$table
  fi
  if [ -n "$drawn" ] && run_stage 6 "a video of two talkers"; then
    script all nn/separate.py --resume_model="$models/$time_stamp/best" --detector=told --render \
      --video="$data/conversation.mp4" --output_dir="exp/$exp_name/conversation"
  fi
  if [ "$stop_stage" -ge 5 ]; then
    say_where "separated wavs" "$output" "$models/$time_stamp/pictures" "$models" "$output/scores"
    [ -z "$drawn" ] || echo "a video, and one a face  $data/conversation.mp4  exp/$exp_name/conversation"
  fi
  echo "done in $((SECONDS - start)) s"
}

diffsep() {
  local preset stage stop_stage time_stamp given user_flags
  local read_here="wsj0_mix vctk_demand corpus_folder dynamic_mixing sample_rate n_speakers mode splits"
  local set_by_stages="is_deploy resume_model nodynamic_mixing output_folder corpus_root wsj0_root sample_rates modes sets"
  set_by_stages+=" talkers task draw published enhance tag"
  read_flags "$read_here tr_mixtures cv_mixtures tt_mixtures" "$set_by_stages" "separation enhancement" \
    "feat/voices.py feat/wsj0_mix.py feat/vctk_demand.py nn/diffsep.py nn/diffsep_evaluate.py" "$@"
  local data=diffsep own_mixtures own_noisy own_talkers rate noisy_rate speakers mode exp_name
  own_mixtures=$(value_of wsj0_mix "") own_noisy=$(value_of vctk_demand "") own_talkers=$(value_of corpus_folder "")
  speakers=$(value_of n_speakers 2) mode=$(value_of mode max) exp_name=$(value_of exp_name diffsep)
  local mixtures=${own_mixtures:-$data/mixtures} noisy=${own_noisy:-$data/noisy}

  local voices_flags=() mix_flags=() noisy_flags=() evaluate_flags=() presets dynamic=
  case $preset in
    small) # Small enough for two CPU cores; every number was tried on the built-in corpus.
      rate=$(value_of sample_rate 8000) noisy_rate=$(value_of sample_rate 8000)
      voices_flags=(--tr_talkers=400 --utterances_per_talker=4)
      mix_flags=(--tr_mixtures=3000 --cv_mixtures=20 --tt_mixtures=40)
      noisy_flags=(--train_recordings=400 --test_recordings=40)
      presets=(small small-enhancement) dynamic=1
      evaluate_flags=(--num_workers=2)
      ;;
    original) # the scripts' own defaults
      rate=$(value_of sample_rate 8000) noisy_rate=$(value_of sample_rate 16000)
      presets=(icassp-separation noise-reduction)
      [ -z "$own_talkers" ] || dynamic=1
      ;;
    *) fail "--preset $preset: there are small and original" ;;
  esac
  case " ${given[*]} " in *" --dynamic_mixing"[\ =]*) dynamic=1 ;; esac
  local number
  for number in tr_mixtures cv_mixtures tt_mixtures; do
    [ -z "$(value_of $number "")" ] || mix_flags+=("--$number=$(value_of $number "")")
  done
  local talkers=${own_talkers:-$data/talkers/voices/$(rate_folder "$noisy_rate")} sets=tr,cv,tt
  local models=exp/$exp_name/models results=exp/$exp_name/results
  # What is given to train on is taken as it is, unless there are recordings of talkers too.
  local mixing=(--dynamic_mixing --corpus_folder="$talkers") mix_talkers=() mix_noise=() easy_first=()
  if [ -n "$dynamic" ]; then
    [ "$preset$own_talkers$speakers" != small2 ] || easy_first=(--both_genders_epochs=2)
    [ -n "$own_mixtures" ] && [ -z "$own_talkers" ] || mix_talkers=("${mixing[@]}" "${easy_first[@]}") sets=cv,tt
    [ -n "$own_noisy" ] && [ -z "$own_talkers" ] || mix_noise=("${mixing[@]}")
  fi

  install corpus
  local start=$SECONDS
  if run_stage 1 "corpora"; then
    local instead=$own_talkers
    [ -z "$own_mixtures" ] || [ -z "$own_noisy" ] || instead="$own_mixtures, $own_noisy"
    # The rate of the talkers.
    rate=$noisy_rate make_talkers "$instead" "${voices_flags[@]}"
    if [ -z "$own_mixtures" ]; then
      script all feat/wsj0_mix.py --draw --corpus_root="$talkers" --output_folder="$mixtures" --talkers="$speakers" \
        --sample_rates="$rate" --modes="$mode" --sets=$sets "${mix_flags[@]}"
    fi
    if [ -z "$own_noisy" ]; then
      script all feat/vctk_demand.py --corpus_root="$talkers" --output_folder="$noisy" --sample_rate="$noisy_rate" \
        "${noisy_flags[@]}"
    fi
  fi
  local folders=(--wsj0_mix="$mixtures" --vctk_demand="$noisy" --mode="$mode")
  local of_task=(--preset="${presets[0]}" --sample_rate="$rate" --n_speakers="$speakers" "${mix_talkers[@]}")
  local task first=2
  for task in separation enhancement; do
    if run_stage $first "training of $task"; then
      script $task nn/diffsep.py "${folders[@]}" "${of_task[@]}" --exp_name="$exp_name" \
        --time_stamp="${time_stamp}_$task" --is_deploy=0
    fi
    if run_stage $((first + 1)) "$task and evaluation"; then
      script $task nn/diffsep_evaluate.py "${folders[@]}" --splits="$(value_of splits test)" \
        --resume_model="$models/${time_stamp}_$task/best" --output_folder="$results" "${evaluate_flags[@]}"
    fi
    of_task=(--preset="${presets[1]}" --sample_rate="$noisy_rate" "${mix_noise[@]}") first=4
  done
  if [ "$stop_stage" -ge 3 ]; then
    say_where "sound, reverse process" "$results/*/wav  $results/*/fig" "$models/${time_stamp}_*/pictures" "$models" \
      "$results"
  fi
  echo "done in $((SECONDS - start)) s"
}

case ${1:-} in
  deep_casa | spex_plus | binaural | looking_to_listen | diffsep)
    "$@"
    ;;
  lint)
    install test
    .venv/bin/ruff check .
    .venv/bin/ruff format --check .
    ;;
  test)
    shift
    install test
    # One process more than cores, as tests wait for processes of their own; the tests of a file stay together, as they
    # share what is slow to make.
    exec .venv/bin/python -m pytest --numprocesses=$(($(getconf _NPROCESSORS_ONLN) + 1)) --dist=loadfile \
      --no-loadscope-reorder "$@"
    ;;
  *) fail "usage: ./run.sh deep_casa | spex_plus | binaural | looking_to_listen | diffsep [flags...], or ./run.sh test [pytest arguments...]" ;;
esac
