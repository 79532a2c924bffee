"""Layout and semantic synthesis: tokens by hand, pictures from first principles, and what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_sd import scatter

from latentgen import (
    DDIMScheduler,
    Layout2ImagePipeline,
    LayoutTokenizer,
    Semantic2ImagePipeline,
    Text2ImagePipeline,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from latentgen.models import LDMBertModel, SpatialRescaler
from latentgen.weights.errors import WeightsError

CALL = {"num_inference_steps": 2, "output_type": "pt", "show_progress": False}
VAE = {
    "block_out_channels": [8, 8, 8],
    "norm_num_groups": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "latent_channels": 3,
    "num_vq_embeddings": 32,
    "scaling_factor": 1.0,
}
UNET = {
    "sample_size": 8,
    "out_channels": 3,
    "block_out_channels": [16, 16],
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "layers_per_block": 1,
}
CROSS = {
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
}
PLAIN = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2, "add_attention": False}
SCHEDULER = DDIMScheduler(clip_sample=False, beta_start=0.0015, beta_end=0.0205, beta_schedule="scaled_linear")
NAMES = ("cat", "dog", "newt")
LAYOUT = [("dog", (0.0, 0.25, 0.5, 1.0)), (0, (0.5, 0.0, 1.0, 0.5))]


@pytest.fixture(scope="module")
def layout_pipe():
    torch.manual_seed(0)
    bert = {"vocab_size": 130, "max_position_embeddings": 14, "d_model": 12, "encoder_layers": 2, "encoder_ffn_dim": 24,
            "encoder_attention_heads": 2, "head_dim": 6}  # fmt: skip
    return Layout2ImagePipeline(
        vae=scatter(VQModel.from_config(VAE)).eval(),
        layout_tokenizer=LayoutTokenizer(NAMES, tokens=128, objects=4),
        layout_encoder=scatter(LDMBertModel.from_config(bert)).eval(),
        unet=scatter(
            UNet2DConditionModel.from_config({**UNET, **CROSS, "in_channels": 3, "cross_attention_dim": 12})
        ).eval(),
        scheduler=SCHEDULER,
    )


@pytest.fixture(scope="module")
def semantic_pipe():
    torch.manual_seed(0)
    return Semantic2ImagePipeline(
        vae=scatter(VQModel.from_config(VAE)).eval(),
        label_rescaler=SpatialRescaler.from_config({"n_stages": 2, "in_channels": 5, "out_channels": 3}).eval(),
        unet=scatter(UNet2DModel.from_config({**UNET, **PLAIN, "in_channels": 6})).eval(),
        scheduler=SCHEDULER,
    )


def test_tokens_of_the_published_size_by_hand():
    """90 sections: x = 0.5 is cell round(44.5) = 44, y = 0.25 is round(22.25) = 22, the far corner 89 * 90 + 89 = 8099."""
    tokenizer = LayoutTokenizer(NAMES)
    ids = tokenizer.encode(LAYOUT).tolist()
    assert (tokenizer.sections, tokenizer.length, len(ids)) == (90, 92, 92)
    assert ids[:6] == [1, 22 * 90, 89 * 90 + 44, 0, 44, 44 * 90 + 89]
    assert ids[6:90] == [8191] * 84
    assert ids[90:] == [0, 8099]


def test_boxes_come_back_to_half_a_cell():
    tokenizer, random = LayoutTokenizer(NAMES), np.random.default_rng(0)
    for _ in range(50):
        layout = []
        for _ in range(random.integers(1, 31)):
            (x0, x1), (y0, y1) = np.sort(random.random((2, 2)), axis=1).tolist()
            layout.append((NAMES[random.integers(3)], (x0, y0, x1, y1)))
        again = tokenizer.decode(tokenizer.encode(layout))
        assert [name for name, _ in again] == [name for name, _ in layout]
        difference = np.abs(np.array([box for _, box in again]) - np.array([box for _, box in layout]))
        assert difference.max() <= 1 / (2 * 89) + 1e-9


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (
            [("bird", (0, 0, 1, 1))],
            r"layout\[0\]: the class 'bird' is not known; use one of cat, dog, newt \(or 0 to 2\)",
        ),
        ([(3, (0, 0, 1, 1))], r"layout\[0\]: the class 3 is not known"),
        ([LAYOUT[0], ("cat", (0, 0, 1.2, 1))], r"layout\[1\]: the box \(0, 0, 1\.2, 1\) leaves \[0, 1\]"),
        ([("cat", (0.6, 0, 0.5, 1))], r"layout\[0\]: the box .* is inverted or empty"),
        ([("cat", (0, float("nan"), 0.5, 1))], "leaves"),
        ([("cat", (0, 0, 1))], "must be four numbers"),
        ([("cat", (0, 0, 1, 1))] * 5, "layout has 5 objects; there must be 1 to 4"),
        ([LAYOUT, []], r"layout\[1\] has 0 objects"),
        ([], r"layout=\[\] must be a list of objects"),
        ("cat", "layout='cat' must be a list of objects"),
        ([5], r"layout\[0\]=5 must be a list of objects"),
        ([LAYOUT, "cat"], r"layout\[1\]='cat' must be a list of objects"),
        ([(True, (0, 0, 1, 1))], "the class True is not known"),
        ([("cat", (0, 0, 10**400, 1))], "leaves"),
        ([("3", (0, 0, 1, 1))], "the class 3 is not known"),
    ],
)
def test_wrong_layouts_are_named(layout_pipe, layout, message):
    with pytest.raises(ValueError, match=message):
        layout_pipe(layout, **CALL)


def test_numbers_may_be_those_of_numpy_and_torch():
    tokenizer = LayoutTokenizer(NAMES, tokens=128, objects=4)
    expected = tokenizer.encode([(2, (0.25, 0, 0.5, 1))])
    box = [0.25, 0, 0.5, 1]
    for given in (
        ("2", box),
        (np.int64(2), np.float32(box)),
        (np.uint8(2), torch.tensor(box)),
        (2, list(np.float16(box))),
    ):
        assert torch.equal(tokenizer.encode([given]), expected)


@torch.no_grad()
def ddim(pipe, x, predict):
    """Two steps of DDIM (Song et al. 2021, eq. 12), at timesteps 500 and 0, written out."""
    alphas = pipe.scheduler.schedule.alphas_cumprod
    for t, before in ((500, alphas[0]), (0, torch.tensor(1.0))):
        eps = predict(x, t)
        x = before.sqrt() * (x - (1 - alphas[t]).sqrt() * eps) / alphas[t].sqrt() + (1 - before).sqrt() * eps
    return (pipe.vae.decode(x) / 2 + 0.5).clamp(0, 1)


def test_a_layout_is_the_context_of_the_unet(layout_pipe):
    pipe, start = layout_pipe, torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[1, 2 * 11, 10 * 11 + 5, 0, 5, 5 * 11 + 10, *[127] * 6, 0, 120]])  # sections: 11
    with torch.no_grad():
        context = pipe.layout_encoder(ids)
    expected = ddim(pipe, start, lambda x, t: pipe.unet(x, t, context))
    drawn = pipe(LAYOUT, latents=start, **CALL).images
    assert torch.allclose(drawn, expected, rtol=0, atol=1e-4)
    assert (pipe(LAYOUT[:1], latents=start, **CALL).images - drawn).abs().max() > 1e-3


def test_a_map_is_concatenated_to_the_latents(semantic_pipe):
    pipe, start = semantic_pipe, torch.randn(1, 3, 6, 8, generator=torch.Generator().manual_seed(1))
    labels = np.random.default_rng(0).integers(0, 5, (24, 32))
    with torch.no_grad():
        marks = torch.nn.functional.one_hot(torch.from_numpy(labels), 5).permute(2, 0, 1)[None].float()
        for _ in range(2):  # as LDM does
            marks = torch.nn.functional.interpolate(marks, scale_factor=0.5, mode="bilinear")
        small = pipe.label_rescaler.channel_mapper(marks)
    expected = ddim(pipe, start, lambda x, t: pipe.unet(torch.cat([x, small], dim=1), t))
    picture = Image.fromarray(labels.astype(np.uint8))
    palette = picture.convert("P")
    palette.putdata(labels.flatten().tolist())
    for given in (labels, torch.from_numpy(labels), picture, palette, [labels]):
        drawn = pipe(given, latents=start, **CALL).images
        assert drawn.shape == (1, 3, 24, 32)
        assert torch.allclose(drawn, expected, rtol=0, atol=1e-4)


def test_a_map_is_a_picture_like_any_other(semantic_pipe, tmp_path):
    def saved(name, picture, **how):
        picture.save(tmp_path / name, **how)
        return Image.open(tmp_path / name)

    frames = [Image.new("L", (16, 16), k) for k in range(3)]
    animated = saved("a.gif", frames[0], save_all=True, append_images=frames[1:])
    whole = saved("b.png", Image.effect_noise((16, 16), 50).point(lambda v: v % 5))
    (tmp_path / "c.png").write_bytes((tmp_path / "b.png").read_bytes()[:100])
    large = saved("d.png", Image.new("P", (4000, 4000)))
    for given, message in ((animated, "labels holds 3 frames or pages"), (large, "more than max_pixels=1000000"),
                           (Image.open(tmp_path / "c.png"), "labels is no whole picture")):  # fmt: skip
        pipe = Semantic2ImagePipeline(**semantic_pipe.components)
        pipe.max_pixels = 1_000_000
        with pytest.raises(ValueError, match=message):
            pipe(given, **CALL)
    exif = Image.Exif()
    exif[0x112] = 6
    turned = saved("e.png", Image.new("L", (32, 16), 1), exif=exif)
    assert semantic_pipe(turned, **CALL).images.shape == (1, 3, 32, 16)
    assert semantic_pipe(whole, **CALL).images.shape == (1, 3, 16, 16)


def test_neighbours_and_order(layout_pipe, semantic_pipe):
    maps = list(np.random.default_rng(0).integers(0, 5, (2, 16, 16)))
    layouts = [LAYOUT, [("newt", (0.1, 0.1, 0.9, 0.9))]]
    for pipe, entries, each in (
        (layout_pipe, layouts, "num_images_per_layout"),
        (semantic_pipe, maps, "num_images_per_map"),
    ):
        both = pipe(entries, seed=5, **{each: 2}, **CALL)
        assert both.seeds == [5, 6, 7, 8]
        for k, which in enumerate([0, 0, 1, 1]):
            alone = pipe(entries[which], seed=5 + k, **CALL).images[0]
            assert torch.allclose(both.images[k], alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full((16, 16), 5), "map 0 holds the label 5; the model knows 0 to 4"),
        ([np.zeros((16, 16), int), np.full((16, 16), -1)], "map 1 holds the label -1"),
        (np.zeros((16, 18), int), "labels has maps of 18 x 16; both sides must be multiples of 4"),
        (
            [np.zeros((16, 16), int), np.zeros((8, 16), int)],
            "labels holds maps of 16 x 16, 16 x 8; they must have one size",
        ),
        (np.zeros((16, 16)), "labels holds numbers of float64; labels are whole numbers"),
        (Image.new("RGB", (16, 16)), "labels is a picture of mode RGB"),
        ("map.png", "labels is a str; give a picture, or integers"),
        ([], "labels holds maps of no size"),
    ],
)
def test_wrong_maps_are_named(semantic_pipe, labels, message):
    with pytest.raises(ValueError, match=message):
        semantic_pipe(labels, **CALL)


def test_both_are_kept_in_folders(layout_pipe, semantic_pipe, tmp_path):
    for pipe, given in ((layout_pipe, LAYOUT), (semantic_pipe, np.ones((16, 16), int))):
        name = type(pipe).__name__
        pipe.save_pretrained(tmp_path / name)
        again = type(pipe).from_pretrained(tmp_path / name, device="cpu", dtype="float32")
        assert torch.equal(again(given, seed=1, **CALL).images, pipe(given, seed=1, **CALL).images)
        with pytest.raises(WeightsError, match=f"Use {name}"):
            Text2ImagePipeline.from_pretrained(tmp_path / name)
    assert (
        LayoutTokenizer.from_pretrained(tmp_path / "Layout2ImagePipeline" / "layout_tokenizer")
        == layout_pipe.layout_tokenizer
    )
    (tmp_path / "layout_tokenizer.json").write_text('{"class_names": ["a"], "colour": 1}')
    with pytest.raises(WeightsError, match="colour"):
        LayoutTokenizer.from_pretrained(tmp_path)


def test_what_does_not_fit_is_named(layout_pipe, semantic_pipe):
    with pytest.raises(
        ValueError,
        match="gives 92 tokens out of 8192, and the encoder reads at most 14 out of 130",
    ):
        Layout2ImagePipeline(**{**layout_pipe.components, "layout_tokenizer": LayoutTokenizer(NAMES)})
    unet = UNet2DModel.from_config({**UNET, **PLAIN, "in_channels": 3})
    with pytest.raises(
        ValueError, match=r"takes 3 channels and gives 3; .* must be 6 and 3: UnconditionalPipeline takes it"
    ):
        Semantic2ImagePipeline(**{**semantic_pipe.components, "unet": unet})
    for settings, message in (
        ({"tokens": 3}, "3 classes and 3 tokens"),
        ({"objects": 0}, "objects=0"),
        ({"crop": 1}, "crop=1"),
    ):
        with pytest.raises(ValueError, match=message):
            LayoutTokenizer(NAMES, **settings)
