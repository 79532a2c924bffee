#!/usr/bin/env bash
# To models of the other tasks, in runs/tiny_scenes; started again, it goes on where it was.
#     bash examples/tiny_scenes/train_tasks.sh superres    an autoencoder of factor 4, and super-resolution on it, bundled
#     bash examples/tiny_scenes/train_tasks.sh inpainting  an inpainting model on the first stage in first_stage/, bundled
#     bash examples/tiny_scenes/train_tasks.sh classes     a class model on it
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
1:inpainting)
    [ -f $runs/data/train/metadata.jsonl ] || "$python" $here/make_dataset.py $runs/data --count 32000
    [ -d $runs/inpainting/model ] || "$python" -m latentgen.cli train diffusion $here/inpainting.toml --resume
    "$python" $here/bundle.py $runs/inpainting/model src/latentgen/bundled/tiny_scenes_inpaint
    "$python" $here/evaluate_tasks.py --json docs/tasks.json --grid docs/tasks.png
    ;;
1:classes)
    [ -f $runs/classes/train/metadata.jsonl ] ||
        "$python" $here/make_dataset.py $runs/classes --count 32000 --things 1 --seed 3
    [ -d $runs/classes_diffusion/model ] || "$python" -m latentgen.cli train diffusion $here/classes.toml --resume
    "$python" $here/evaluate_classes.py $runs/classes_diffusion/model --json docs/classes.json --grid docs/classes.png
    ;;
*) echo "usage: bash $0 superres|inpainting|classes" >&2 && exit 2 ;;
esac
"$python" docs/figures.py
