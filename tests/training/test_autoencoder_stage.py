"""What stage 1 shows the network, and its loss."""

from types import SimpleNamespace

import pytest
import torch
from tiny_runs import changed

from latentgen.models.autoencoder_kl import Posterior
from latentgen.training import train_autoencoder
from latentgen.training.autoencoder import AutoencoderStage
from latentgen.training.data import load_picture, to_tensor
from latentgen.training.losses import first_stage_loss

ACCELERATOR = SimpleNamespace(device=torch.device("cpu"), is_main_process=False)


def test_crops_are_parts_of_the_pictures(autoencoder_config):
    stage = AutoencoderStage(changed(autoencoder_config, data={"crop": 8}), ACCELERATOR)
    batch = stage.batch(3, 0, 1)
    assert batch["pictures"].shape == (8, 3, 8, 8)
    assert batch["noise"].shape == (8, 4, 4, 4)
    whole = to_tensor([load_picture(e.path, 16) for e in stage.examples])
    windows = whole.unfold(2, 8, 1).unfold(3, 8, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 8, 8)
    for picture in batch["pictures"]:
        assert (windows == picture).flatten(1).all(dim=1).any()


def test_batches_are_a_pure_function_of_seed_index_and_process(autoencoder_config):
    stage = AutoencoderStage(changed(autoencoder_config, data={"crop": 8}), ACCELERATOR)
    one = stage.batch(5, 1, 2)
    torch.manual_seed(99)
    assert all(torch.equal(tensor, one[name]) for name, tensor in stage.batch(5, 1, 2).items())
    for other in (stage.batch(6, 1, 2), stage.batch(5, 0, 2)):
        assert not torch.equal(other["noise"], one["noise"])
        assert not torch.equal(other["pictures"], one["pictures"])


@pytest.mark.parametrize("data", [{"size": 15}, {"crop": 7}])
def test_sizes_that_do_not_fit_stop_before_training(autoencoder_config, tmp_path, data):
    config = changed(autoencoder_config, data=data, run={"output": tmp_path / "run"})
    with pytest.raises(ValueError, match=rf"{next(iter(data))}={next(iter(data.values()))} must be a multiple of 2"):
        train_autoencoder(config)
    assert not (tmp_path / "run").exists()


def test_loss_in_closed_form():
    """L1, and 0.5 (m^2 + s^2 - 1 - log s^2) for each latent value, per value of the picture."""
    pictures, reconstructions = torch.zeros(2, 3, 8, 8), torch.full((2, 3, 8, 8), 0.25)
    mean, logvar = torch.full((2, 4, 2, 2), 2.0), torch.full((2, 4, 2, 2), 1.0)
    posterior = Posterior(torch.cat([mean, logvar], dim=1))
    losses = first_stage_loss(pictures, reconstructions, posterior, kl_weight=0.1)
    assert float(losses["l1"]) == pytest.approx(0.25)
    nats = 0.5 * (4 + 2.718281828 - 1 - 1) * 16
    assert float(losses["kl"]) == pytest.approx(0.1 * nats / 192, rel=1e-6)


def test_divergence_is_exact_for_a_posterior_in_bfloat16():
    """Near the prior it is a small difference of numbers around 1, which bfloat16 itself cannot hold."""
    moments = torch.cat([torch.zeros(1, 4, 8, 8), torch.full((1, 4, 8, 8), 0.0625)], dim=1)
    pictures = torch.zeros(1, 3, 16, 16)
    losses = [
        float(first_stage_loss(pictures, pictures, Posterior(moments.to(dtype)), kl_weight=1.0)["kl"])
        for dtype in (torch.float64, torch.bfloat16)
    ]
    assert losses[0] > 0
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
