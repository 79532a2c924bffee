"""A component of its own, from a folder or a Hub id: the usual way to replace a pipeline's autoencoder."""

import pytest
import torch

from latentgen.models import AutoencoderKL, UNet2DConditionModel
from latentgen.pipelines.text2image import Text2ImagePipeline
from latentgen.weights.errors import WeightsError

F32 = {"device": "cpu", "dtype": "float32"}


@pytest.fixture
def cache(model_folder, tmp_path):
    """The Hub's cache with a repository that is one autoencoder, and one that is a whole model."""
    vae = AutoencoderKL.from_pretrained(model_folder, subfolder="vae", **F32)
    for name in ("vae-ft", "model"):
        root = tmp_path / f"models--owner--{name}"
        snapshot = root / "snapshots" / "0123abc"
        (root / "refs").mkdir(parents=True)
        (root / "refs" / "main").write_text("0123abc")
        if name == "vae-ft":
            vae.save_pretrained(snapshot)
            vae.save_pretrained(snapshot, variant="fp16")
        else:
            snapshot.parent.mkdir()
            snapshot.symlink_to(model_folder)
    return tmp_path


def same(first, second):
    return all(torch.equal(t, second.state_dict()[name]) for name, t in first.state_dict().items())


def test_a_repository_that_is_one_component(cache, model_folder):
    options = {"cache_dir": cache, "local_files_only": True, "revision": "main", "token": False}
    vae = AutoencoderKL.from_pretrained("owner/vae-ft", torch_dtype="float32", device="cpu", variant="fp16", **options)
    assert same(vae, AutoencoderKL.from_pretrained(model_folder, subfolder="vae", **F32))
    pipe = Text2ImagePipeline.from_pretrained(model_folder, vae=vae, **F32)
    assert pipe.vae is vae
    with pytest.raises(WeightsError, match=r"owner/vae-ft .revision v2. is not in the cache"):
        AutoencoderKL.from_pretrained("owner/vae-ft", **{**options, "revision": "v2"})
    with pytest.raises(ValueError, match="dtype and torch_dtype were both given"):
        AutoencoderKL.from_pretrained("owner/vae-ft", dtype="float32", torch_dtype="float32", **options)


def test_a_component_of_a_whole_repository(cache, model_folder):
    options = {"cache_dir": cache, "local_files_only": True, **F32}
    unet = UNet2DConditionModel.from_pretrained("owner/model", subfolder="unet", **options)
    assert same(unet, UNet2DConditionModel.from_pretrained(model_folder / "unet", **F32))
    with pytest.raises(WeightsError, match="is a whole model: name its component, for example subfolder='unet'"):
        UNet2DConditionModel.from_pretrained(model_folder, **F32)


@pytest.mark.parametrize("place", ["owner/none", "./none", None])
def test_what_is_not_there(place, tmp_path):
    with pytest.raises(ValueError, match=r"Hub id of the form owner/name|is not in the cache"):
        AutoencoderKL.from_pretrained(place, cache_dir=tmp_path, local_files_only=True, **F32)
