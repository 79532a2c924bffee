"""What a call of `InpaintPipeline` does with its arguments."""

import dataclasses
import io
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_sd import scatter

from latentgen import DDIMScheduler, UNet2DModel, VQModel, extend_canvas
from latentgen.diffusion.noise import NoiseStream
from latentgen.models.unet import UNet2DConditionModel
from latentgen.pipelines.canvas import Canvas, filled, soft_mask, surroundings
from latentgen.pipelines.inpaint import InpaintPipeline
from latentgen.pipelines.text2image import Text2ImagePipeline
from latentgen.weights.errors import WeightsError

CALL = {"num_inference_steps": 4, "scheduler": "ddim", "seed": 3}


@pytest.fixture
def inpaint(pipe):
    return InpaintPipeline.from_pipe(pipe)


@pytest.fixture
def nine(inpaint):
    """A model that is shown the mask."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(dataclasses.replace(inpaint.unet.config, in_channels=9)).eval()
    return InpaintPipeline.from_pipe(inpaint, unet=unet.requires_grad_(False))


def picture(seed=0, size=(32, 32)):
    smooth = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(smooth).resize(size, Image.Resampling.BICUBIC)


def mask(box=(9, 6, 21, 17), size=(32, 32)):
    """White in a box (left, top, right, bottom) that lies across the latents' cells of 4 pixels."""
    pixels = np.zeros(size[::-1], np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("blur", [0, 3, 2.5])
@pytest.mark.parametrize("size", [(32, 32), (37, 30)])
@pytest.mark.parametrize("shown", [False, True], ids=["any UNet", "inpainting UNet"])
def test_pixels_outside_the_mask_are_the_pictures_bit_for_bit(inpaint, nine, shown, size, blur):
    image, area = picture(size=size), mask(size=size)
    outside = np.asarray(area) == 0
    pipe = nine if shown else inpaint
    drawn = np.asarray(pipe("a cat", image, area, mask_blur=blur, **CALL).images[0])
    assert drawn.shape == np.asarray(image).shape
    assert np.array_equal(drawn[outside], np.asarray(image)[outside])
    assert np.abs(drawn[~outside].astype(int) - np.asarray(image)[~outside]).mean() > 1
    floats = torch.rand(3, *size[::-1], generator=torch.Generator().manual_seed(0))
    tensors = pipe("a cat", floats, area, mask_blur=blur, output_type="pt", **CALL).images[0]
    assert torch.equal(tensors[:, outside], floats[:, outside])


def test_the_plain_output_changes_everything_a_little(inpaint):
    image, area = picture(), mask()
    drawn = np.asarray(inpaint("a cat", image, area, keep_unmasked=False, **CALL).images[0])
    assert not np.array_equal(drawn[np.asarray(area) == 0], np.asarray(image)[np.asarray(area) == 0])


def tensor_of(area):
    return torch.from_numpy(np.asarray(area).copy())[None].float() / 255


def test_a_soft_seam_rises_over_its_width_inside_the_mask_only():
    area = tensor_of(mask((8, 8, 26, 26)))
    soft = soft_mask(area, 4)[0]
    assert not soft[area[0] == 0].any()
    assert soft[16, 8:17].tolist() == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1]
    assert torch.equal(soft_mask(area, 0), area)
    black, white = torch.zeros(1, 3, 32, 32), torch.ones(3, 32, 32)
    back = Canvas.whole(black, area[None], 4).put_back(white, 0, keep_unmasked=True, blur=4)
    assert torch.equal(back, soft[None].expand(3, -1, -1))


@pytest.mark.parametrize("blur", [1, 2.5, 8, 30])
@pytest.mark.parametrize("box", [(5, 5, 6, 6), (4, 10, 28, 12), (10, 10, 22, 22), (0, 0, 32, 32)])
def test_no_mask_is_too_small_for_its_seam(box, blur):
    area = tensor_of(mask(box))
    soft = soft_mask(area, blur)
    assert torch.equal(soft > 0, area > 0)
    assert soft.max() <= 1
    if box == (0, 0, 32, 32):
        assert soft.min() == 1  # the picture's border is no edge


@pytest.mark.parametrize("pixel", [(9, 6), (8, 4), (11, 7)])
def test_a_cell_with_one_pixel_to_draw_is_drawn(inpaint, pixel):
    """diffusers looks at the first pixel of each cell alone, and leaves what a thin stroke covers as it was."""
    x, y = pixel
    seen = []
    inpaint("a cat", picture(), mask((x, y, x + 1, y + 1)), num_inference_steps=1, scheduler="ddim", output_type="latent",
            callback_on_step_end=lambda _, i, t, values: seen.append(values["latents"]), seed=0)  # fmt: skip
    inpaint("a cat", picture(), mask((0, 0, 1, 1)), num_inference_steps=1, scheduler="ddim", output_type="latent",
            callback_on_step_end=lambda _, i, t, values: seen.append(values["latents"]), seed=0)  # fmt: skip
    changed = (seen[0] != seen[1]).any(dim=1)[0]
    assert changed.nonzero().tolist() == [[0, 0], [1, 2]]


def test_what_is_known_is_at_every_knot_as_noisy_as_the_plan_says(inpaint):
    """Solved for the noise, the known latents give the same noise at each knot, and at the last the picture's own."""
    seen = []
    inpaint("a cat", picture(), mask(), num_inference_steps=5, strength=0.8, scheduler="ddim", output_type="latent", seed=0,
            callback_on_step_end=lambda _, i, t, values: seen.append(values["latents"]))  # fmt: skip
    from latentgen.schedulers import scheduler_by_name

    plan = scheduler_by_name("ddim", inpaint.scheduler.config).plan(5).tail(1)
    x0 = seen[-1][..., 6:, 6:]
    noises = [(x[..., 6:, 6:] - plan.alphas[k] * x0) / plan.sigmas[k] for k, x in enumerate(seen[:-1], 1)]
    assert len(noises) == 3
    for noise in noises[1:]:
        assert torch.allclose(noise, noises[0], atol=1e-4)
    assert 0.5 < float(noises[0].std()) < 1.5


def test_an_inpainting_network_is_shown_the_mask_and_what_is_around_it(nine, monkeypatch):
    seen = []
    real = UNet2DConditionModel.denoise
    monkeypatch.setattr(UNet2DConditionModel, "denoise", lambda self, x, *r: seen.append(x) or real(self, x, *r))
    encoded = []
    encode = type(nine.vae).encode
    monkeypatch.setattr(type(nine.vae), "encode", lambda self, x: encoded.append(x) or encode(self, x))
    nine("a cat", picture(), mask((8, 4, 24, 16)), guidance_scale=1, **CALL)
    assert len(encoded) == 1
    assert not encoded[0][0, :, 4:16, 8:24].any()  # grey, in [-1, 1]
    outside = torch.ones(32, 32, dtype=torch.bool)
    outside[4:16, 8:24] = False
    pixels = torch.from_numpy(np.asarray(picture()).copy()).permute(2, 0, 1) / 127.5 - 1
    assert torch.allclose(encoded[0][0][:, outside], pixels[:, outside], atol=1e-6)
    assert all(x.shape == (1, 9, 8, 8) for x in seen)
    assert all(torch.equal(x[:, 4:], seen[0][:, 4:]) for x in seen)
    cells = torch.zeros(8, 8)
    cells[1:4, 2:6] = 1
    assert torch.equal(seen[0][0, 4], cells)


def test_an_empty_mask_gives_the_picture_back_with_a_warning(inpaint, monkeypatch):
    image = picture(size=(33, 31))
    monkeypatch.setattr(UNet2DConditionModel, "denoise", lambda *_: pytest.fail("nothing is to be drawn"))
    with pytest.warns(UserWarning, match="nothing is drawn, and the picture comes back"):
        result = inpaint("a cat", image, Image.new("L", (33, 31), 127), num_images_per_prompt=2, **CALL)
    assert len(result.images) == 2
    assert all(np.array_equal(np.asarray(i), np.asarray(image)) for i in result.images)
    assert result.seeds == [3, 4]


def test_an_empty_mask_among_others(inpaint):
    image, masks = picture(), [mask(), Image.new("L", (32, 32), 0), mask((2, 2, 12, 30))]
    for keep in (True, False):
        with pytest.warns(UserWarning, match=r"nothing white .* in mask 1 \(counted from 0\)"):
            drawn = inpaint("a cat", image, masks, keep_unmasked=keep, **CALL).images
        assert [np.array_equal(np.asarray(d), np.asarray(image)) for d in drawn] == [False, True, False]


def test_a_seam_without_anything_to_blend_with_is_told_of(inpaint):
    with pytest.warns(UserWarning, match="mask_blur has no effect"):
        inpaint("a cat", picture(), mask(), mask_blur=4, keep_unmasked=False, **CALL)


def test_an_all_white_mask_draws_everything(inpaint):
    """With any UNet: the picture has no part in what comes."""
    white = Image.new("L", (32, 32), 255)
    call = {**CALL, "output_type": "pt"}
    first, second = (inpaint("a cat", picture(k), white, **call).images for k in range(2))
    assert torch.allclose(first, second, atol=1e-5)


def test_pairs_and_neighbours(inpaint):
    images, masks, prompts = [picture(0), picture(1)], [mask(), mask((2, 2, 12, 30))], ["a cat", "a dog"]
    call = {**CALL, "output_type": "pt"}
    both = inpaint(prompts, images, masks, num_images_per_prompt=2, **{**call, "seed": 5}).images
    for k, which in enumerate([0, 0, 1, 1]):
        alone = inpaint(prompts[which], images[which], masks[which], **{**call, "seed": 5 + k}).images[0]
        assert torch.allclose(both[k], alone, rtol=0, atol=1e-4)  # kernels sum differently for another batch size
    one_picture = inpaint("a cat", images[0], masks, **call).images
    assert torch.equal(one_picture[1][:, np.asarray(masks[1]) == 0], one_picture[0].new_tensor(
        np.asarray(images[0]).transpose(2, 0, 1) / 255.0)[:, np.asarray(masks[1]) == 0])  # fmt: skip


@pytest.mark.parametrize(("image", "area", "options", "message"), [
    (picture(), mask(size=(32, 33)), {}, "image is 32 x 32 pixels and mask_image 32 x 33; they must have one size"),
    ([picture()] * 2, [mask()] * 3, {}, "there are 2 pictures and 3 masks; give one mask, or one for each picture"),
    (picture(), None, {}, "mask_image is a NoneType; it must be"),
    (picture(), mask(), {"mask_blur": -1}, "mask_blur=-1 must be a finite number of at least 0"),
    (picture(), mask(), {"padding_mask_crop": 1.5}, "padding_mask_crop=1.5 must be a whole number of pixels"),
    (picture(), mask(), {"height": 64}, "height and width are for padding_mask_crop"),
    (picture(), mask(), {"padding_mask_crop": 4, "height": 30}, "height=30 is not a positive multiple of 4"),
    (picture(), mask(), {"strength": 0}, "strength=0 of 50 steps leaves none"),
    (picture(), mask(), {"keep_unmasked": "no"}, "keep_unmasked='no' must be one of True, False"),
    (picture(), torch.rand(3, 32, 32), {}, r"three masks or one in colour: give masks as \(N, 1, H, W\)"),
])  # fmt: skip
def test_bad_input(inpaint, image, area, options, message):
    with pytest.raises(ValueError, match=message):
        inpaint("a cat", image, area, **options)


def test_a_network_of_other_channels_is_named(inpaint, nine):
    seven = UNet2DConditionModel(dataclasses.replace(inpaint.unet.config, in_channels=7))
    with pytest.raises(ValueError, match=r"the UNet takes 7 channels .* must agree \(it may take 4 or 9\)"):
        InpaintPipeline.from_pipe(inpaint, unet=seven)
    with pytest.raises(ValueError, match="9 input channels: it is an inpainting model, which InpaintPipeline loads"):
        Text2ImagePipeline.from_pipe(nine)


def test_a_saved_inpainting_model_is_named_to_the_wrong_pipeline(nine, tmp_path):
    nine.save_pretrained(tmp_path / "saved")
    with pytest.raises(WeightsError, match=r"StableDiffusionInpaintPipeline, which .* Use InpaintPipeline\."):
        Text2ImagePipeline.from_pretrained(tmp_path / "saved")
    again = InpaintPipeline.from_pretrained(tmp_path / "saved", device="cpu", dtype="float32")
    call = {**CALL, "output_type": "pt", "show_progress": False}
    assert torch.equal(again("a", picture(), mask(), **call).images, nine("a", picture(), mask(), **call).images)


@pytest.mark.parametrize(("box", "padding", "aspect", "region"), [
    ((10, 10, 20, 20), 0, 1.0, (10, 10, 20, 20)),
    ((10, 10, 20, 20), 4, 1.0, (6, 6, 24, 24)),
    ((10, 10, 20, 14), 2, 1.0, (8, 5, 22, 19)),
    ((0, 0, 4, 20), 0, 1.0, (0, 0, 20, 20)),
    ((30, 2, 38, 38), 0, 1.0, (4, 2, 40, 38)),
    ((10, 10, 20, 20), 0, 2.0, (5, 10, 25, 20)),
    ((0, 10, 40, 12), 0, 0.5, (0, 0, 40, 40)),  # the picture is too small for the ratio
    ((0, 0, 0, 0), 3, 1.0, (0, 0, 40, 40)),
])  # fmt: skip
def test_surroundings(box, padding, aspect, region):
    area = torch.from_numpy(np.asarray(mask(box, (40, 40))).copy()).float()
    assert surroundings(area, padding, aspect) == region


def test_a_crop_is_drawn_enlarged_and_put_back(inpaint, monkeypatch):
    shapes = []
    real = UNet2DConditionModel.denoise
    monkeypatch.setattr(
        UNet2DConditionModel, "denoise", lambda self, x, *r: shapes.append(x.shape) or real(self, x, *r)
    )
    image, area = picture(size=(100, 80)), mask((40, 30, 52, 40), (100, 80))
    drawn = np.asarray(inpaint("a cat", image, area, padding_mask_crop=4, **CALL).images[0])
    assert {tuple(s[-2:]) for s in shapes} == {(8, 8)}  # 32 pixels, the trained size, over a latent's 4
    outside = np.asarray(area) == 0
    assert np.array_equal(drawn[outside], np.asarray(image)[outside])
    assert not np.array_equal(drawn[~outside], np.asarray(image)[~outside])
    plain = np.asarray(inpaint("a cat", image, area, padding_mask_crop=4, keep_unmasked=False, **CALL).images[0])
    far = np.ones((80, 100), bool)
    far[20:50, 30:62] = False
    assert np.array_equal(plain[far], np.asarray(image)[far])
    assert not np.array_equal(plain[outside], np.asarray(image)[outside])


@pytest.mark.parametrize("column", range(0, 640, 79))
def test_a_thin_stroke_is_seen_in_a_crop_that_is_made_smaller(column):
    area = torch.zeros(1, 1, 640, 640)
    area[..., 3:637, column] = 1
    canvas = Canvas.around_masks(torch.zeros(1, 3, 640, 640), area, 0, 128, 128)
    assert canvas.shown_masks.shape == (1, 1, 128, 128)
    assert canvas.shown_masks.any(dim=3).sum() >= 127


def test_a_canvas_is_as_pictures_are_read(tmp_path):
    turned = Image.new("RGBA", (4, 2), (255, 0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    turned.save(file, "PNG", exif=exif)
    canvas, area = extend_canvas(Image.open(file), right=np.int64(3))
    assert canvas.size == area.size == (5, 4)
    assert canvas.getpixel((0, 0)) == (255, 255, 255)
    Image.new("L", (4, 4)).save(tmp_path / "a.gif", save_all=True, append_images=[Image.new("L", (4, 4), 9)])
    for given, sides, message in (
        (np.zeros((4, 4, 3)), {"top": 1}, "image is a ndarray; it must be a PIL image"),
        (Image.open(tmp_path / "a.gif"), {"top": 1}, "image holds 2 frames"),
        (Image.new("L", (4, 4)), {"right": 10**9}, "more than max_pixels=64000000: add less"),
    ):
        with pytest.raises(ValueError, match=message):
            extend_canvas(given, **sides)
    grey = extend_canvas(Image.fromarray(np.full((3, 4), 51 * 257, np.uint16)), top=1)[0]
    assert grey.getpixel((0, 0)) == (51, 51, 51)


def test_a_text_to_image_model_is_saved_as_one(inpaint, tmp_path):
    inpaint.save_pretrained(tmp_path / "saved")
    Text2ImagePipeline.from_pretrained(tmp_path / "saved", device="cpu", dtype="float32")
    InpaintPipeline.from_pretrained(tmp_path / "saved", device="cpu", dtype="float32")


def test_outpainting(inpaint):
    image = picture()
    canvas, area = extend_canvas(image, right=8, top=5)
    assert canvas.size == area.size == (40, 37)
    assert np.array_equal(np.asarray(canvas)[5:, :32], np.asarray(image))
    assert (np.asarray(area)[5:, :32] == 0).all()
    assert np.asarray(area).mean() == pytest.approx(255 * (1 - 32 * 32 / (40 * 37)))
    assert np.array_equal(np.asarray(canvas)[0, :32], np.asarray(image)[0])
    drawn = np.asarray(inpaint("a cat", canvas, area, **CALL).images[0])
    assert np.array_equal(drawn[5:, :32], np.asarray(image))
    for wrong, message in (({}, "are all 0"), ({"left": -1}, "left=-1 must be"), ({"top": 1.5}, "top=1.5 must be")):
        with pytest.raises(ValueError, match=message):
            extend_canvas(image, **wrong)


def test_no_warnings_in_an_ordinary_call(inpaint):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inpaint("a cat", picture(), mask(), **CALL)


def test_repeats_change_the_picture_and_not_what_seeds_mean(inpaint):
    call = {**CALL, "output_type": "pt", "eta": 0.3}
    once, thrice = (inpaint("a cat", picture(), mask(), repeats=r, **call).images for r in (1, 3))
    assert not torch.equal(once, thrice)
    both = inpaint(["a", "a cat"], picture(), mask(), repeats=3, **{**call, "seed": [8, 3]}).images
    assert torch.allclose(both[1], thrice[0], rtol=0, atol=1e-4)


def test_a_network_that_sees_the_mask_repeats_nothing(nine):
    with pytest.raises(ValueError, match="repeats=2 is for a UNet that is not shown the mask; this one is"):
        nine("a cat", picture(), mask(), repeats=2, **CALL)
    with pytest.raises(ValueError, match="repeats=0 must be a whole number of at least 1"):
        nine("a cat", picture(), mask(), repeats=0, **CALL)


def test_a_filled_start_has_nothing_of_what_was_under_the_mask(inpaint):
    """Two pictures that differ under the mask alone: with "fill" they become one."""
    image, area = picture(), mask()
    other = Image.composite(Image.new("RGB", image.size, "red"), image, area)
    call = {**CALL, "strength": 0.5, "output_type": "pt"}
    kept = [inpaint("a cat", p, area, **call).images for p in (image, other)]
    anew = [inpaint("a cat", p, area, masked_content="fill", **call).images for p in (image, other)]
    assert not torch.equal(*kept)
    assert torch.equal(*anew)
    with pytest.raises(ValueError, match="masked_content='noise' must be one of 'original', 'fill'"):
        inpaint("a cat", image, area, masked_content="noise", **CALL)


def test_what_is_filled_is_between_the_colours_around_it():
    pictures = torch.zeros(1, 3, 24, 40)
    pictures[:, 0], pictures[:, :, 6:14, 10:30] = torch.linspace(0.2, 0.8, 40), 1.0
    masks = torch.zeros(1, 1, 24, 40)
    masks[..., 6:14, 10:30] = 1
    result = filled(pictures, masks)
    assert torch.equal(result * (1 - masks), pictures * (1 - masks))
    inside = result[..., 6:14, 10:30]
    assert float(inside[:, 1:].abs().max()) == 0
    assert 0.2 < float(inside[:, 0].min()) < 0.5 < float(inside[:, 0].max()) < 0.8
    assert bool((inside[:, 0].diff(dim=-1) >= -1e-6).all())


def test_where_nothing_is_known_the_fill_is_grey_and_thin_pictures_are_filled_too():
    nothing = filled(torch.zeros(1, 3, 8, 12), torch.ones(1, 1, 8, 12))
    assert torch.equal(nothing, torch.full((1, 3, 8, 12), 0.5))
    thin, masks = torch.full((1, 3, 1, 16), 0.25), torch.zeros(1, 1, 1, 16)
    thin[..., 4:12], masks[..., 4:12] = 1.0, 1.0
    assert torch.allclose(filled(thin, masks), torch.full((1, 3, 1, 16), 0.25))


@pytest.fixture(scope="module")
def ldm():
    """The form of LDM's inpainting model: a codebook, 3 + 3 + 1 channels, no text."""
    torch.manual_seed(0)
    vae = {"block_out_channels": [8, 8, 8], "norm_num_groups": 4, "down_block_types": ["DownEncoderBlock2D"] * 3,
           "up_block_types": ["UpDecoderBlock2D"] * 3, "latent_channels": 3, "num_vq_embeddings": 32,
           "scaling_factor": 1.0}  # fmt: skip
    unet = {"in_channels": 7, "out_channels": 3, "sample_size": 8, "block_out_channels": [16, 16], "norm_num_groups": 4,
            "layers_per_block": 1, "attention_head_dim": 8, "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D", "UpBlock2D"], "downsample_type": "resnet", "upsample_type": "resnet"}  # fmt: skip
    scheduler = DDIMScheduler(
        clip_sample=False, steps_offset=0, beta_start=0.0015, beta_end=0.0205, beta_schedule="scaled_linear"
    )
    parts = {"vae": scatter(VQModel.from_config(vae)), "unet": scatter(UNet2DModel.from_config(unet))}
    pipe = InpaintPipeline(scheduler=scheduler, **{name: part.eval() for name, part in parts.items()})
    pipe.show_progress = False
    return pipe


@torch.no_grad()
def test_ldms_inpainting_is_that_of_its_script(ldm):
    """scripts/inpaint.py, written out: masked pixels are black, the mask goes from -1 to 1, and the rest is pasted back."""
    area = mask((8, 4, 20, 16))  # on the latents' cells
    known, white = tensor_of(area)[None], torch.from_numpy(np.asarray(picture()).copy()).permute(2, 0, 1)[None] / 255
    masked = ldm.vae.encode((1 - known) * white * 2 - 1)
    small = torch.nn.functional.interpolate(known * 2 - 1, masked.shape[-2:])
    alphas = ldm.scheduler.schedule.alphas_cumprod
    x = NoiseStream([3], (3, 8, 8)).draw()
    for t in (750, 500, 250, 0):
        eps = ldm.unet(torch.cat([x, masked, small], dim=1), t)
        before = alphas[t - 250] if t else torch.tensor(1.0)
        x = before.sqrt() * (x - (1 - alphas[t]).sqrt() * eps) / alphas[t].sqrt() + (1 - before).sqrt() * eps
    expected = (1 - known) * white + known * (ldm.vae.decode(x) / 2 + 0.5).clamp(0, 1)
    drawn = ldm(image=picture(), mask_image=area, num_inference_steps=4, seed=3, output_type="pt").images
    assert torch.allclose(drawn, expected, rtol=0, atol=1e-4)
    assert torch.equal(drawn * (1 - known), white * (1 - known))


@pytest.mark.filterwarnings("ignore:.*steps_offset=0, unusual for a latent model")  # it is so in LDM's scripts
def test_ldms_inpainting_has_no_texts_and_is_kept_in_a_folder(ldm, tmp_path):
    ldm.save_pretrained(tmp_path / "model")
    again = InpaintPipeline.from_pretrained(tmp_path / "model", device="cpu", dtype="float32")
    assert again.text_encoder is None
    call = {"image": picture(), "mask_image": mask(), "num_inference_steps": 2, "seed": 1, "show_progress": False}
    assert np.array_equal(*(np.asarray(p(**call).images[0]) for p in (ldm, again)))
    with pytest.raises(ValueError, match="prompt, guidance_scale cannot be used: this model is shown the mask and"):
        ldm("a cat", guidance_scale=3.0, **call)
    with pytest.raises(WeightsError, match="Use InpaintPipeline"):
        Text2ImagePipeline.from_pretrained(tmp_path / "model")


def test_what_does_not_fit_ldms_inpainting_is_named(ldm, inpaint):
    def unet(channels):
        return UNet2DModel(dataclasses.replace(ldm.unet.config, in_channels=channels))

    for channels, words in (
        (3, ": UnconditionalPipeline takes it"),
        (6, ": SuperResPipeline takes it"),
        (5, "another task"),
    ):
        with pytest.raises(ValueError, match=f"the UNet takes {channels} channels and gives 3; inpainting .*{words}"):
            InpaintPipeline.from_pipe(ldm, unet=unet(channels))
    with pytest.raises(ValueError, match="the UNet is a UNet2DModel: with a text encoder it must be"):
        InpaintPipeline.from_pipe(inpaint, unet=ldm.unet)
    with pytest.raises(ValueError, match="text_encoder and tokenizer go together"):
        InpaintPipeline(**{**inpaint.components, "tokenizer": None})
