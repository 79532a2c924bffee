import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from tiny_runs import AUTOENCODER, DIFFUSION, make_pictures

from latentgen.training import AutoencoderTraining, DiffusionTraining, load_config, train_autoencoder, train_diffusion


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def workplace(tmp_path_factory):
    """A folder with pictures and the two config files."""
    folder = tmp_path_factory.mktemp("workplace")
    make_pictures(folder / "pictures")
    (folder / "autoencoder.toml").write_text(AUTOENCODER)
    (folder / "diffusion.toml").write_text(DIFFUSION)
    return folder


@pytest.fixture(scope="session")
def autoencoder_config(workplace):
    return load_config(AutoencoderTraining, workplace / "autoencoder.toml")


@pytest.fixture(scope="session")
def diffusion_config(workplace, trained_autoencoder):
    return load_config(DiffusionTraining, workplace / "diffusion.toml")


@pytest.fixture(scope="session")
def trained_autoencoder(autoencoder_config, one_thread):
    return train_autoencoder(autoencoder_config)


@pytest.fixture(scope="session")
def trained_diffusion(diffusion_config, one_thread):
    return train_diffusion(diffusion_config)
