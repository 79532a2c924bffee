"""What a call of `Class2ImagePipeline` does with its arguments, and the picture from first principles."""

from dataclasses import replace

import pytest
import torch
from tiny_sd import scatter

from latentgen import (
    Class2ImagePipeline,
    DDIMScheduler,
    Img2ImgPipeline,
    SuperResPipeline,
    Text2ImagePipeline,
    UnconditionalPipeline,
    UNet2DModel,
    VQModel,
)
from latentgen.models import ClassEmbedder, UNet2DConditionModel
from latentgen.weights.errors import WeightsError

NAMES = ["cat", "dog", "newt"]
CALL = {"num_inference_steps": 3, "output_type": "pt", "show_progress": False}
VAE = {
    "block_out_channels": [8, 8],
    "norm_num_groups": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "latent_channels": 3,
    "num_vq_embeddings": 16,
    "scaling_factor": 1.0,
}
UNET = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [16, 16],
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "layers_per_block": 1,
    "cross_attention_dim": 12,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
}


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    classes = {"num_classes": 4, "embed_dim": 12, "has_null_class": True, "class_names": NAMES}
    return Class2ImagePipeline(
        vae=scatter(VQModel.from_config(VAE)).eval(),
        class_embedder=ClassEmbedder.from_config(classes).eval(),
        unet=scatter(UNet2DConditionModel.from_config(UNET)).eval(),
        scheduler=DDIMScheduler(clip_sample=False, beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear"),
    )


@pytest.fixture
def without_null(pipe):
    config = replace(pipe.class_embedder.config, has_null_class=False, class_names=None)
    embedder = ClassEmbedder(config)
    embedder.load_state_dict(pipe.class_embedder.state_dict())
    return Class2ImagePipeline(**{**pipe.components, "class_embedder": embedder})


@pytest.mark.parametrize(
    ("channels", "fits"), [(6, "SuperResPipeline or Semantic2ImagePipeline takes it"), (7, "InpaintPipeline takes it"),
                           (9, "of another task")],
)  # fmt: skip
def test_the_pipeline_that_fits_is_named(pipe, channels, fits):
    blocks = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2, "add_attention": False}
    words = {name: UNET[name] for name in ("sample_size", "out_channels", "block_out_channels", "norm_num_groups")}
    other = UNet2DModel.from_config({**words, **blocks, "in_channels": channels})
    with pytest.raises(ValueError, match=fits):
        UnconditionalPipeline(vqvae=pipe.vae, unet=other, scheduler=pipe.scheduler)
    plain = UNet2DModel.from_config({**words, **blocks, "in_channels": 3})
    with pytest.raises(ValueError, match="UnconditionalPipeline takes it"):
        SuperResPipeline(vae=pipe.vae, unet=plain, scheduler=pipe.scheduler)


def test_components_that_are_not_there_are_missing(pipe):
    words = {name: UNET[name] for name in ("sample_size", "out_channels", "block_out_channels", "norm_num_groups")}
    blocks = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2, "add_attention": False}
    unet = UNet2DModel.from_config({**words, **blocks, "in_channels": 6})
    upscaler = SuperResPipeline(vae=pipe.vae, unet=unet, scheduler=pipe.scheduler)
    with pytest.raises(
        ValueError, match="SuperResPipeline has no text_encoder, tokenizer, which Img2ImgPipeline needs"
    ):
        Img2ImgPipeline.from_pipe(upscaler)


@torch.no_grad()
def by_hand(pipe, label, start, guidance, steps=3):
    """DDIM (Song et al. 2021, eq. 12) with classifier-free guidance (Ho and Salimans 2022, eq. 6), written out."""
    alphas = pipe.scheduler.schedule.alphas_cumprod.double()
    weight = pipe.class_embedder.embedding.weight
    context, null = weight[label][None, None], weight[3][None, None]
    x, spacing = start, 1000 // steps
    for t in range(spacing * (steps - 1), -1, -spacing):
        eps, nothing = (pipe.unet(x, t, c).double() for c in (context, null))
        eps = nothing + guidance * (eps - nothing)
        before = alphas[t - spacing] if t >= spacing else torch.tensor(1.0)
        x0 = (x.double() - (1 - alphas[t]).sqrt() * eps) / alphas[t].sqrt()
        x = (before.sqrt() * x0 + (1 - before).sqrt() * eps).float()
    return (pipe.vae.decode(x) / 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_picture_from_first_principles(pipe, guidance):
    start = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    drawn = pipe("newt", latents=start, guidance_scale=guidance, **CALL).images
    assert torch.allclose(drawn, by_hand(pipe, 2, start, guidance), rtol=0, atol=1e-4)
    assert (drawn - by_hand(pipe, 1, start, guidance)).abs().max() > 0.01


def test_names_numbers_and_order(pipe):
    drawn = pipe(["dog", 0, "2"], num_images_per_class=2, seed=7, **CALL)
    assert drawn.seeds == list(range(7, 13))
    for k, label in enumerate([1, 1, 0, 0, 2, 2]):
        alone = pipe(label, seed=7 + k, **CALL).images[0]
        assert torch.allclose(drawn.images[k], alone, rtol=0, atol=1e-4)


def test_guidance_by_default_where_there_is_a_null_class(pipe, without_null):
    assert torch.equal(pipe(0, seed=1, **CALL).images, pipe(0, seed=1, guidance_scale=3.0, **CALL).images)
    drawn = without_null(0, seed=1, **CALL).images
    assert torch.equal(drawn, pipe(0, seed=1, guidance_scale=1.0, **CALL).images)
    assert without_null(3, seed=1, **CALL).images.shape == drawn.shape  # the last class is one as any other
    with pytest.raises(
        ValueError, match=r"guidance_scale=2\.0 needs a null class, which this model was trained without"
    ):
        without_null(0, guidance_scale=2.0, **CALL)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("bird", r"the class 'bird' is not known: names are cat, dog, newt \(or 0 to 2\)"),
        (["cat", "bird"], r"classes\[1\]: 'bird' is not known"),
        (3, "the class 3 is not known: the model has classes 0 to 2"),
        (-1, "the class -1 is not known"),
        ([], r"classes=\[\] must be a class"),
        (1.0, r"classes=1\.0 must be a class"),
        ([True], "the class True is not known"),
    ],
)
def test_unknown_classes_are_named(pipe, classes, message):
    with pytest.raises(ValueError, match=message):
        pipe(classes, **CALL)


def test_it_is_kept_in_a_folder(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    again = Class2ImagePipeline.from_pretrained(tmp_path / "model", device="cpu", dtype="float32")
    assert again.class_embedder.config == pipe.class_embedder.config
    assert torch.equal(again("cat", seed=1, **CALL).images, pipe("cat", seed=1, **CALL).images)
    with pytest.raises(WeightsError, match="Use Class2ImagePipeline"):
        Text2ImagePipeline.from_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="UnconditionalPipeline has no vae, class_embedder"):
        Class2ImagePipeline.from_pipe(unconditional(pipe))


def unconditional(pipe):
    unet = {k: v for k, v in UNET.items() if k not in ("cross_attention_dim",)}
    unet |= {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2, "add_attention": False}
    return UnconditionalPipeline(vqvae=pipe.vae, unet=UNet2DModel.from_config(unet), scheduler=pipe.scheduler)


def test_what_does_not_fit_is_named(pipe):
    other = ClassEmbedder.from_config({"num_classes": 4, "embed_dim": 16})
    with pytest.raises(ValueError, match="the class embedder gives width 16 and the UNet attends to width 12"):
        Class2ImagePipeline(**{**pipe.components, "class_embedder": other})
    unet = UNet2DConditionModel.from_config({**UNET, "in_channels": 7})
    with pytest.raises(ValueError, match="it is an inpainting model, which InpaintPipeline loads"):
        Class2ImagePipeline(**{**pipe.components, "unet": unet})


def test_as_many_names_as_imagenet_has():
    names = [f"class {k}" for k in range(1000)]
    settings = {"num_classes": 1001, "embed_dim": 4, "has_null_class": True, "class_names": names}
    assert ClassEmbedder.from_config(settings).config.class_names == tuple(names)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_names": ["a", "b"]}, "class_names holds 2 names, 2 of them different; there are 3 classes"),
        ({"class_names": ["a", "b", "b"]}, "class_names holds 3 names, 2 of them different"),
        ({"num_classes": 1}, "num_classes=1 leaves no class beside the null class"),
    ],
)
def test_names_fit_the_classes(settings, message):
    with pytest.raises(ValueError, match=message):
        ClassEmbedder.from_config({"num_classes": 4, "embed_dim": 12, "has_null_class": True} | settings)
