#!/usr/bin/env bash
# To models of the other tasks, in runs/tiny_scenes; started again, it goes on where it was.
#     bash examples/tiny_scenes/train_tasks.sh superres    an autoencoder of factor 4, and super-resolution on it, bundled
#     bash examples/tiny_scenes/train_tasks.sh classes     a class model on the first stage in first_stage/
set -euo pipefail
cd "$(dirname "$0")/../.."
here=examples/tiny_scenes
runs=runs/tiny_scenes

python=python
[ -x .venv/bin/python ] && python=.venv/bin/python
python=${PYTHON:-$python}

case "$#:${1-}" in
1:superres)
    [ -f $runs/data/train/metadata.jsonl ] || "$python" $here/make_dataset.py $runs/data --count 12000
    [ -d $runs/autoencoder_f4_start ] || "$python" $here/start_f4.py $runs/autoencoder_f4_start
    [ -d $runs/autoencoder_f4/model ] || "$python" -m latentgen.cli train autoencoder $here/autoencoder_f4.toml --resume
    [ -d $runs/superres/model ] || "$python" -m latentgen.cli train diffusion $here/superres.toml --resume
    [ -d $runs/superres_whole/model ] || "$python" -m latentgen.cli train diffusion $here/superres_whole.toml --resume
    "$python" $here/bundle.py $runs/superres_whole/model src/latentgen/bundled/tiny_scenes_x4
    "$python" $here/evaluate_superres.py --json docs/superres.json --grid docs/superres.png
    ;;
1:classes)
    [ -f $runs/classes/train/metadata.jsonl ] ||
        "$python" $here/make_dataset.py $runs/classes --count 16000 --things 1 --seed 3
    [ -d $runs/classes_diffusion/model ] || "$python" -m latentgen.cli train diffusion $here/classes.toml --resume
    "$python" $here/evaluate_classes.py $runs/classes_diffusion/model --grid $runs/classes.png
    ;;
*) echo "usage: bash $0 superres|classes" >&2 && exit 2 ;;
esac
"$python" docs/figures.py
