"""Every argument of a call that breaks its rule is a ValueError that names the argument, its value and the rule."""

import copy
import importlib
import re

import numpy as np
import pytest
import torch

from latentgen.pipelines.inputs import check_side

NAN, INF = float("nan"), float("inf")
BAD_NUMBERS = [NAN, INF, -INF, True, "7", None, 10**400, [1.0], np.float64("nan"), np.bool_(True), np.ones(1)]


def refused(pipe, *words, prompt="a cat", **options):
    """The call fails before anything is drawn, and the message has these words."""
    with pytest.raises(ValueError) as caught:
        pipe(prompt, **options)
    message = str(caught.value)
    assert all(word in message for word in words), message
    return message


def draw(*shape, **options):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(**options)


@pytest.mark.parametrize("name", ["height", "width"])
@pytest.mark.parametrize(
    ("value", "words"),
    [(2**40, "at most 32768"),
     (30, "use 28 or 32"), (3, "use 4."), (0, "use 4."), (-8, "use 4."), (32.0, "a whole number of pixels"),
     ("32", "a whole number of pixels"), (True, "a whole number of pixels"), (NAN, "a whole number of pixels")],
)  # fmt: skip
def test_sizes(pipe, name, value, words):
    refused(pipe, f"{name}={value!r}", words, **{name: value})


def test_the_nearest_good_sizes_are_named():
    with pytest.raises(ValueError, match=r"height=500 is not a positive multiple of 8 .*; use 496 or 504\."):
        check_side("height", 500, None, 8)


@pytest.mark.parametrize("value", [0, -1, 1001, 2.0, "5", True, None, NAN])
def test_steps(pipe, value):
    refused(pipe, f"num_inference_steps={value!r}", "a whole number from 1 to 1000", num_inference_steps=value)


@pytest.mark.parametrize("value", [*BAD_NUMBERS, -0.1])
def test_guidance_scale(pipe, value):
    refused(pipe, f"guidance_scale={value!r}", "a finite number of at least 0", guidance_scale=value)


@pytest.mark.parametrize("value", [*BAD_NUMBERS, -0.1, 1.1])
@pytest.mark.parametrize("name", ["guidance_rescale", "eta"])
def test_numbers_up_to_1(pipe, name, value):
    refused(pipe, f"{name}={value!r}", "a number from 0 to 1", scheduler="ddim", **{name: value})


def test_eta_of_a_scheduler_that_has_none(pipe):
    refused(pipe, "eta=0.5", "PNDMScheduler has none", "use DDIM", eta=0.5)


@pytest.mark.parametrize("value", [0, -1, 1.0, "2", True, None])
def test_num_images_per_prompt(pipe, value):
    refused(pipe, f"num_images_per_prompt={value!r}", "a whole number of at least 1", num_images_per_prompt=value)


@pytest.mark.parametrize(
    "value", [[], (), 5, b"a cat", [None], ["a", 5], [["a"]], {"a": 1}, np.array([]), np.array([["a"]]), np.array([1])]
)
def test_prompts(pipe, value):
    refused(pipe, f"prompt={value!r}", "a text or a non-empty list of texts", prompt=value)


@pytest.mark.parametrize("value", [[], 5, ["a", None]])
@pytest.mark.parametrize("scale", [1, 7.5])
def test_negative_prompts(pipe, value, scale):
    words = (f"negative_prompt={value!r}", "a text or a non-empty list of texts")
    refused(pipe, *words, negative_prompt=value, guidance_scale=scale)


def test_the_number_of_negative_prompts(pipe):
    refused(pipe, "negative_prompt has 2 entries", "1 or 3", prompt=["a", "b", "c"], negative_prompt=["x", "y"])


def test_a_prompt_is_given_once_and_in_one_form(pipe):
    refused(pipe, "give prompt or prompt_embeds", "prompt=''", prompt=None)
    refused(pipe, "give prompt or prompt_embeds", prompt_embeds=draw(1, 77, 32))
    both = {"negative_prompt": "x", "negative_prompt_embeds": draw(1, 77, 32)}
    refused(pipe, "negative_prompt and negative_prompt_embeds were both given", **both)


@pytest.mark.parametrize(
    ("value", "words"),
    [(-1, "a whole number from 0"), (2**64, "a whole number from 0"), (1.0, "a whole number or a list"),
     ("1", "a whole number or a list"), (True, "a whole number or a list")],
)  # fmt: skip
def test_seeds(pipe, value, words):
    refused(pipe, f"seed={value!r}", words, seed=value)


@pytest.mark.parametrize("text", ["a \udcff", "\ud83d"])
@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
def test_half_a_character(pipe, name, text):
    refused(pipe, repr(text), f"position {text.index(text[-1])}", "lone surrogate", **{"prompt": "a", name: text})


@pytest.mark.parametrize("value", [-1, None, 1.5, "1", True, np.float64(1), np.bool_(True)])
def test_seeds_in_a_list(pipe, value):
    refused(pipe, f"seed={value!r}", "a whole number from 0", seed=[value])


def test_the_number_of_seeds_and_generators(pipe):
    refused(pipe, "seed has 3 entries", "2 images", seed=[1, 2, 3], num_images_per_prompt=2)
    refused(pipe, "seed has 0 entries", "1 images", seed=[])
    refused(pipe, "generator has 1 entries", "2 images", generator=[torch.Generator()], num_images_per_prompt=2)
    refused(pipe, "seed and generator were both given", seed=1, generator=torch.Generator())
    refused(pipe, "generator=5 must be a torch.Generator", generator=5)
    refused(pipe, "generator=[5] must be a torch.Generator", generator=[5])


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ((1, 4, 8, 7), "has shape (1, 4, 8, 7); it must be (1, 4, 8, 8)"),
        ((2, 4, 8, 8), "has shape (2, 4, 8, 8); it must be (1, 4, 8, 8)"),
        ((4, 8, 8), "has shape (4, 8, 8); it must be (1, 4, 8, 8)"),
        (torch.int64, "of shape (1, 4, 8, 8) is torch.int64; it must be floating-point"),
        (torch.complex64, "of shape (1, 4, 8, 8) is torch.complex64; it must be floating-point"),
        ("meta", "of shape (1, 4, 8, 8) is on meta and the pipeline on cpu: use latents.to('cpu')"),
        ([1.0], "is a list; it must be a tensor of shape (1, 4, 8, 8)"),
    ],
)
def test_latents(pipe, value, words):
    if isinstance(value, tuple):
        value = draw(*value)
    elif isinstance(value, torch.dtype):
        value = draw(1, 4, 8, 8, dtype=value)
    elif value == "meta":
        value = draw(1, 4, 8, 8, device="meta")
    refused(pipe, f"latents {words}", latents=value)


@pytest.mark.parametrize(
    ("shape", "words"),
    [((77, 32), "(77, 32)"), ((1, 77, 33), "(1, 77, 33)"), ((0, 77, 32), "(0, 77, 32)"), ((1, 0, 32), "(1, 0, 32)")],
)
def test_prompt_embeds(pipe, shape, words):
    refused(pipe, f"prompt_embeds has shape {words}", "(any, any, 32)", prompt=None, prompt_embeds=draw(*shape))


def test_negative_prompt_embeds(pipe):
    words = ("negative_prompt_embeds has shape (2, 77, 32)", "(1, 77, 32)")
    refused(pipe, *words, negative_prompt_embeds=draw(2, 77, 32))
    refused(pipe, "negative_prompt_embeds is a str", negative_prompt_embeds="x")


def test_embeddings_of_another_length_need_their_own_negative(pipe):
    words = ("prompt_embeds has shape (1, 12, 32)", "(1, 77, 32)", "give negative_prompt_embeds too")
    refused(pipe, *words, prompt=None, prompt_embeds=draw(1, 12, 32))


@pytest.mark.parametrize("value", [3, -1, 1.0, True, "1"])
def test_clip_skip(pipe, value):
    refused(pipe, f"clip_skip={value!r}", "0 to 2", clip_skip=value)
    given = {"prompt_embeds": draw(1, 77, 32), "negative_prompt_embeds": draw(1, 77, 32)}
    refused(pipe, f"clip_skip={value!r}", "0 to 2", prompt=None, clip_skip=value, **given)


@pytest.mark.parametrize("bad", [NAN, INF])
def test_numbers_that_are_not_finite_are_the_arguments(pipe, bad):
    def spoilt(*shape):
        tensor = draw(*shape)
        tensor.flatten()[3] = bad
        return tensor

    refused(pipe, "latents of shape (1, 4, 8, 8) has values that are not finite", latents=spoilt(1, 4, 8, 8))
    words = "prompt_embeds of shape (1, 77, 32) has values that are not finite in torch.float32"
    refused(pipe, words, prompt=None, prompt_embeds=spoilt(1, 77, 32))
    refused(pipe, f"negative_{words}", negative_prompt_embeds=spoilt(1, 77, 32))


def test_numbers_too_large_for_the_dtype_they_are_cast_to(pipe):
    large = draw(1, 4, 8, 8).double() * 1e300
    refused(pipe, "latents", "not finite in torch.float32", latents=large)


@pytest.mark.parametrize("value", ["jpg", None, 5, ["pil"]])
def test_output_type(pipe, value):
    refused(pipe, f"output_type={value!r}", "one of 'pil', 'np', 'pt', 'latent'", output_type=value)


@pytest.mark.parametrize(("value", "words"), [("eule", "use one of"), (5, "a scheduler of latentgen or the name of one"),
                                              (object, "a scheduler of latentgen or the name of one")])  # fmt: skip
def test_scheduler(pipe, value, words):
    refused(pipe, f"scheduler={value!r}", words, scheduler=value)


def test_callback(pipe):
    refused(pipe, "callback_on_step_end=5 must be a function", callback_on_step_end=5)
    returns = {"num_inference_steps": 1}
    refused(pipe, "returned a Tensor", "None or a dictionary", callback_on_step_end=lambda *_: draw(1), **returns)
    words = ("returned 'latent', 'guidance'", "only 'latents' can be replaced")
    misspelt = {"latent": draw(1, 4, 8, 8), "latents": draw(1, 4, 8, 8), "guidance": 1}
    refused(pipe, *words, callback_on_step_end=lambda *_: misspelt, **returns)
    words = ("the callback's latents has shape (1, 4, 8, 9)", "(1, 4, 8, 8)")
    refused(pipe, *words, callback_on_step_end=lambda *_: {"latents": draw(1, 4, 8, 9)}, **returns)


def test_networks_on_different_devices_are_named(pipe):
    for name in ("vae", "text_encoder"):
        other = type(pipe)(**{**pipe.components, name: copy.deepcopy(pipe.components[name]).to("meta")})
        refused(other, f"{name} is on meta and unet on cpu", "pipe.to('cpu')")
    other = type(pipe)(**{**pipe.components, "unet": copy.deepcopy(pipe.unet).to("meta")})
    assert other.device == torch.device("meta")


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [("scheduler", "euler", "latentgen.schedulers.Scheduler"), ("unet", None, "latentgen.UNet2DConditionModel")],
)
def test_a_component_of_a_wrong_class_is_refused_where_it_is_assigned(pipe, name, value, kind):
    before = pipe.components
    with pytest.raises(ValueError, match=f"{name} is a builtins.{type(value).__name__}; it must be a {kind}"):
        setattr(pipe, name, value)
    assert pipe.components == before
    module, cls = kind.rsplit(".", 1)
    assert hasattr(importlib.import_module(module), cls), "the message names something that exists"


def test_nothing_runs_before_the_arguments_are_checked(pipe, monkeypatch):
    monkeypatch.setattr(type(pipe.unet), "denoise", lambda *_: pytest.fail("the UNet ran"))
    refused(pipe, "latents", latents=draw(1))
    refused(pipe, "seed", seed="x")


def test_messages_are_one_line(pipe):
    assert not re.search(r"\n", refused(pipe, "height", height=30))
