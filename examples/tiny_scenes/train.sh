#!/usr/bin/env bash
# To the bundled model, in runs/tiny_scenes; started again, it goes on where it was.
#     bash examples/tiny_scenes/train.sh                   stage 2 on the trained first stage in first_stage/
#     bash examples/tiny_scenes/train.sh --from-scratch    stage 1 as well, and stage 2 on its result
set -euo pipefail
cd "$(dirname "$0")/../.."
here=examples/tiny_scenes
runs=runs/tiny_scenes

python=python
[ -x .venv/bin/python ] && python=.venv/bin/python
python=${PYTHON:-$python}

case "$#:${1-}" in
0:) config=$here/diffusion.toml output=$runs/diffusion ;;
1:--from-scratch) config=$runs/from_scratch.toml output=$runs/diffusion_from_scratch ;;
*) echo "usage: bash $0 [--from-scratch]" >&2 && exit 2 ;;
esac

[ -f $runs/data/train/metadata.jsonl ] || "$python" $here/make_dataset.py $runs/data --count 75000

if [ "$config" = $here/diffusion.toml ]; then
    echo "stage 1 is $here/first_stage, trained before; --from-scratch trains it anew"
else
    [ -d $runs/autoencoder/model ] || "$python" -m latentgen.cli train autoencoder $here/autoencoder.toml --resume
    # The same settings, but for stage 1. Paths in a settings file count from the file.
    sed -e 's#^autoencoder = .*#autoencoder = "autoencoder/model"#' -e "s#^output = .*#output = \"${output##*/}\"#" \
        -e "s#^folder = .*#folder = \"data/train\"#" $here/diffusion.toml >$config
fi
[ -d $output/model ] || "$python" -m latentgen.cli train diffusion $config --resume

"$python" $here/bundle.py $output/model src/latentgen/bundled/tiny_scenes
"$python" $here/evaluate.py --json docs/bundled-model.json --grid docs/bundled-model.png
"$python" docs/figures.py
