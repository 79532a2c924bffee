"""The networks of LDM's published settings at full width, with random weights, against diffusers: float32.

diffusers' autoencoders are the measure in float64: in float32 they are themselves some way from that. diffusers knows one width
of attention heads for a whole `UNet2DModel`, so of the published UNets those that have one are here.
"""

import copy

import diffusers
import pytest
import torch
from published import AUTOENCODERS, autoencoder_words, published, unet_words
from tiny_sd import adopt, relative_error

from latentgen.models import AutoencoderKL, UNet2DConditionModel, VQModel

LIMIT = 1e-5
UNETS = [
    "ldm-bsr_sr", "ldm-celeba256", "ldm-cin256-v2", "ldm-layout2img-openimages256", "ldm-lsun_beds256",
    "ldm-txt2img-1p4B-eval",
]  # fmt: skip

pytestmark = pytest.mark.slow


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def encoded_and_decoded(model, pictures, latents):
    """What either library's network makes of both, in its own format."""
    dtype = next(model.parameters()).dtype
    encoded, decoded = model.encode(pictures.to(dtype)), model.decode(latents.to(dtype))
    encoded = getattr(encoded, "latents", getattr(encoded, "latent_dist", encoded))
    if not isinstance(encoded, torch.Tensor):
        encoded = torch.cat([encoded.mean, encoded.logvar], dim=1)
    return encoded, getattr(decoded, "sample", decoded)


@pytest.mark.parametrize("name", AUTOENCODERS)
@torch.no_grad()
def test_autoencoder(record, name):
    """The same function in float64; in float32 the rounding is of the size of diffusers' own."""
    words = autoencoder_words(published(f"autoencoder-{name}")["model"])
    cls = VQModel if "vq" in name else AutoencoderKL
    torch.manual_seed(0)
    theirs = getattr(diffusers, cls.__name__)(**words).eval()
    if cls is VQModel:  # entries that lie where latents do, and far enough apart to be told from one another
        theirs.quantize.embedding.weight.normal_()
    ours = adopt(cls, theirs)
    pictures = draw(1, 3, 128, 64) / 2
    latents = draw(1, ours.config.embed_dim, 128 // ours.config.factor, 64 // ours.config.factor)
    rounded = [encoded_and_decoded(model, pictures, latents) for model in (ours, theirs)]
    same, exact = (encoded_and_decoded(model.double(), pictures, latents) for model in (copy.deepcopy(ours), theirs))
    assert max(map(relative_error, same, exact)) <= 1e-10
    error, own = (max(map(relative_error, results, exact)) for results in rounded)
    record(f"LDM at full width, autoencoder {name}", error)
    assert error <= max(LIMIT, 2 * own)


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
