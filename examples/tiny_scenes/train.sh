#!/usr/bin/env bash
# From nothing to the bundled model, in runs/tiny_scenes; started again, it goes on where it was.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python}

[ -d runs/tiny_scenes/data/train ] || $python examples/tiny_scenes/make_dataset.py runs/tiny_scenes/data --count 60000
[ -d runs/tiny_scenes/autoencoder/model ] || $python -m latentgen.cli train autoencoder examples/tiny_scenes/autoencoder.toml --resume
[ -d runs/tiny_scenes/diffusion/model ] || $python -m latentgen.cli train diffusion examples/tiny_scenes/diffusion.toml --resume
$python examples/tiny_scenes/bundle.py runs/tiny_scenes/diffusion/model src/latentgen/bundled/tiny_scenes
$python examples/tiny_scenes/evaluate.py --json docs/bundled-model.json --grid docs/bundled-model.png
