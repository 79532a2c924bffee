"""`Text2ImagePipeline` against diffusers' `LDMTextToImagePipeline`: the same folder and latents, float32."""

import warnings

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel
from test_vq_model import VAE
from tiny_sd import make_encoder, scatter
from transformers import BertTokenizer

from latentgen.pipelines.img2img import Img2ImgPipeline
from latentgen.pipelines.inpaint import InpaintPipeline
from latentgen.pipelines.superres import SuperResPipeline
from latentgen.pipelines.text2image import Text2ImagePipeline
from latentgen.text import load_bert_tokenizer
from latentgen.weights.errors import WeightsError

LIMIT = 1e-4
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "##s", "dog", "!", "on", "red"]
BERT = {"vocab_size": len(WORDS), "max_position_embeddings": 77, "encoder_layers": 2, "encoder_ffn_dim": 32, "d_model": 16,
        "encoder_attention_heads": 2, "head_dim": 8}  # fmt: skip
UNET = {"sample_size": 8, "block_out_channels": (16, 32), "norm_num_groups": 8, "attention_head_dim": 4, "layers_per_block": 1,
        "cross_attention_dim": 16, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}  # fmt: skip
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
PROMPTS = ["A red CAT!", "cats on a zebra"]


@pytest.fixture(scope="module")
def pipes(tmp_path_factory):
    """Ours and theirs, of one folder."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("ldm") / "model"
    vae = scatter(diffusers.AutoencoderKL(**{**VAE, "latent_channels": 4, "scaling_factor": 0.5}))
    unet = scatter(diffusers.UNet2DConditionModel(**UNET))
    tokenizer = BertTokenizer(vocab={word: k for k, word in enumerate(WORDS)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the pipeline is deprecated
        bert = LDMBertModel(LDMBertConfig(**BERT)).eval()
        for parameter in bert.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        scheduler = diffusers.DDIMScheduler(**SCHEDULER)
        theirs = diffusers.LDMTextToImagePipeline(
            vqvae=vae, bert=bert, tokenizer=tokenizer, unet=unet, scheduler=scheduler
        )
        theirs.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1)
        theirs.save_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    ours = Text2ImagePipeline.from_pretrained(folder, device="cpu", dtype="float32")
    ours.show_progress = False
    return ours, theirs, folder


def test_token_ids_are_theirs(pipes):
    ours, theirs, _ = pipes
    from latentgen.text import tokenize

    texts = [*PROMPTS, "", "dog " * 100, "cats!"]
    expected = theirs.tokenizer(
        texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids
    with pytest.warns(UserWarning, match="The prompt has 100 tokens and the text encoder reads 75"):
        assert torch.equal(tokenize(ours.tokenizer, texts, max_length=77), expected)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_the_same_picture(pipes, guidance, record):
    ours, theirs, _ = pipes
    side = 8 * theirs.vae_scale_factor
    size = side if theirs.vae_scale_factor == 8 else 64
    start = torch.randn(2, 4, size // 8, size // 8, generator=torch.Generator().manual_seed(1))
    call = {"num_inference_steps": 5, "guidance_scale": guidance, "output_type": "np", "latents": start}
    expected = theirs(PROMPTS, height=size, width=size, **call).images
    factor = ours.vae.config.factor
    drawn = ours(PROMPTS, height=size // 8 * factor, width=size // 8 * factor, **call).images
    difference = float(np.abs(drawn - expected).max())
    assert difference <= LIMIT
    assert np.abs(expected[0] - expected[1]).max() > 0.05
    if guidance > 1:
        record("LDM text to image", difference)


def test_it_is_kept_as_theirs(pipes, tmp_path):
    ours, theirs, _ = pipes
    ours.save_pretrained(tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = diffusers.LDMTextToImagePipeline.from_pretrained(tmp_path / "model")
    for name in ("vqvae", "bert", "unet"):
        mine, other = getattr(again, name).state_dict(), getattr(theirs, name).state_dict()
        assert all(torch.equal(mine[key], other[key]) for key in other)
    assert again.tokenizer(PROMPTS, padding=True).input_ids == theirs.tokenizer(PROMPTS, padding=True).input_ids
    reread = Text2ImagePipeline.from_pretrained(tmp_path / "model", device="cpu", dtype="float32")
    call = {"num_inference_steps": 2, "seed": 1, "output_type": "pt", "show_progress": False}
    assert torch.equal(reread("a cat", **call).images, ours("a cat", **call).images)


def test_neighbours_and_what_is_refused(pipes, tmp_path):
    ours, _, folder = pipes
    call = {"num_inference_steps": 2, "output_type": "pt", "negative_prompt": "dog"}
    both = ours(PROMPTS, seed=4, **call).images
    assert torch.allclose(both[1], ours(PROMPTS[1], seed=5, **call).images[0], rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="clip_skip=1 is not a number of layers that can be left out"):
        ours("a cat", clip_skip=1, **call)
    with pytest.raises(
        WeightsError, match=r"is of a LDMTextToImagePipeline.*Use Text2ImagePipeline, Img2ImgPipeline or Inp"
    ):
        SuperResPipeline.from_pretrained(folder)
    (tmp_path / "vocab.txt").write_text("a\ncat\n")
    with pytest.raises(WeightsError, match=r"has no vocabulary of BERT's kind: it lacks \[UNK\]"):
        load_bert_tokenizer(tmp_path)
    with pytest.raises(WeightsError, match=r"vocab\.txt is missing"):
        load_bert_tokenizer(folder)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": {}}')
    with pytest.raises(WeightsError, match=r"describes a \{\}; only BertTokenizer"):
        load_bert_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "tokenizer_config.json").symlink_to("nowhere")
    with pytest.raises(WeightsError, match="is a link to a file that does not exist"):
        load_bert_tokenizer(tmp_path)


@pytest.mark.parametrize("cls", [Img2ImgPipeline, InpaintPipeline])
def test_pictures_from_pictures(pipes, tmp_path, cls):
    """No pipeline of diffusers does this; the embeddings of its text encoder must give the picture of the prompts."""
    _, theirs, folder = pipes
    pipe = cls.from_pretrained(folder, device="cpu", dtype="float32")
    pipe.show_progress = False
    assert pipe.scheduler.clip_sample is False
    picture = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1))
    call = {"image": picture, "num_inference_steps": 4, "seed": 3, "output_type": "pt", "strength": 0.75}
    if cls is InpaintPipeline:
        call["mask_image"] = torch.zeros(1, 32, 32).index_fill(2, torch.arange(8, 24), 1.0)
    ids = theirs.tokenizer(PROMPTS, padding="max_length", max_length=77, return_tensors="pt").input_ids
    blank = theirs.tokenizer([""], padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        positive, negative = theirs.bert(ids)[0], theirs.bert(blank)[0]
    drawn = pipe(PROMPTS, **call).images
    given = pipe(prompt_embeds=positive, negative_prompt_embeds=negative.expand(2, -1, -1), **call).images
    assert float((drawn - given).abs().max()) <= LIMIT
    assert float((drawn[0] - pipe(PROMPTS[1], **call).images[0]).abs().max()) > 10 * LIMIT
    pipe.save_pretrained(tmp_path / "kept")
    again = Text2ImagePipeline.from_pretrained(tmp_path / "kept", device="cpu", dtype="float32")
    assert type(again.text_encoder).__name__ == "LDMBertModel"
    with pytest.raises(ValueError, match=r"tokenizer is a BertTokenizer and text_encoder a CLIPTextModel|must agree"):
        cls(**{**pipe.components, "text_encoder": make_encoder()})


def test_a_tokenizer_of_another_kind_is_refused(pipes, sd1_folder):
    ours, *_ = pipes
    other = Text2ImagePipeline.from_pretrained(sd1_folder, device="cpu", dtype="float32")
    with pytest.raises(ValueError, match="tokenizer is a CLIPTokenizer and text_encoder a LDMBertModel, whose"):
        Text2ImagePipeline(**{**ours.components, "tokenizer": other.tokenizer})
