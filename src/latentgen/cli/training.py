"""The command that trains."""

from __future__ import annotations

import argparse
import sys


def train(arguments: argparse.Namespace) -> None:
    from latentgen.training.config import AutoencoderTraining, DiffusionTraining, load_config

    how = {"resume": arguments.resume, "show_progress": not arguments.quiet}
    try:
        if arguments.stage == "autoencoder":
            from latentgen.training.autoencoder import train_autoencoder

            folder = train_autoencoder(load_config(AutoencoderTraining, arguments.config), **how)
        else:
            from latentgen.training.diffusion import train_diffusion

            folder = train_diffusion(load_config(DiffusionTraining, arguments.config), **how)
    except KeyboardInterrupt as stopped:
        if str(stopped):  # what is kept
            print(f"latentgen: {stopped}", file=sys.stderr)
        raise
    print(folder)
