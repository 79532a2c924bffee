"""The networks of LDM's published settings at full width, with random weights, against diffusers: float32.

diffusers' autoencoders run in float64: in float32 they are themselves further from that than ours. diffusers knows one width of
attention heads for a whole `UNet2DModel`, so of the published UNets those that have one are here.
"""

import diffusers
import pytest
import torch
from published import AUTOENCODERS, autoencoder_words, published, unet_words
from tiny_sd import adopt, relative_error

from latentgen.models import AutoencoderKL, UNet2DConditionModel, VQModel

LIMIT = 1e-5
UNETS = [
    "ldm-bsr_sr", "ldm-celeba256", "ldm-cin256-v2", "ldm-lsun_beds256", "ldm-semantic_synthesis512",
    "ldm-txt2img-1p4B-eval",
]  # fmt: skip

pytestmark = pytest.mark.slow


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", AUTOENCODERS)
@torch.no_grad()
def test_autoencoder(record, name):
    words = autoencoder_words(published(f"autoencoder-{name}")["model"])
    cls = VQModel if "vq" in name else AutoencoderKL
    torch.manual_seed(0)
    theirs = getattr(diffusers, cls.__name__)(**words).eval()
    if cls is VQModel:  # entries that lie where latents do, and far enough apart to be told from one another
        theirs.quantize.embedding.weight.normal_()
    ours = adopt(cls, theirs)
    theirs.double()
    pictures = draw(1, 3, 128, 64) / 2
    if cls is VQModel:
        z, expected = ours.encode(pictures), theirs.encode(pictures.double()).latents
        latents = draw(1, words["vq_embed_dim"], *z.shape[2:])
        decoded = theirs.decode(latents.double()).sample
    else:
        posterior, moments = ours.encode(pictures), theirs.encode(pictures.double()).latent_dist
        z = torch.cat([posterior.mean, posterior.logvar], dim=1)
        expected = torch.cat([moments.mean, moments.logvar], dim=1)
        latents = draw(1, words["latent_channels"], *z.shape[2:])
        decoded = theirs.decode(latents.double()).sample
    error = max(relative_error(z, expected), relative_error(ours.decode(latents), decoded))
    record(f"LDM at full width, autoencoder {name}", error)
    assert error <= LIMIT


@pytest.mark.parametrize("name", UNETS)
@torch.no_grad()
def test_unet(record, name):
    cls, words = unet_words(published(name)["model"]["params"]["unet_config"]["params"])
    torch.manual_seed(0)
    if cls is not UNet2DConditionModel:
        (words["attention_head_dim"],) = set(words["attention_head_dim"])
    theirs = getattr(diffusers, cls.__name__)(**words).eval()
    ours = adopt(cls, theirs)
    side = 2 ** (len(words["block_out_channels"]) + 1)
    x, timestep = draw(1, words["in_channels"], side, 2 * side), torch.tensor([500])
    if cls is UNet2DConditionModel:
        context = draw(1, 7, words["cross_attention_dim"])
        got, expected = ours(x, timestep, context), theirs(x, timestep, context).sample
    else:
        got, expected = ours(x, timestep), theirs(x, timestep).sample
    error = relative_error(got, expected)
    record(f"LDM at full width, UNet of {name.removeprefix('ldm-')}", error)
    assert error <= LIMIT
