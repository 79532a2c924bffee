"""Prompts, a tokenizer's folder and a text encoder, small enough for tests."""

import json
from importlib.metadata import version
from pathlib import Path

import torch

REFERENCE = Path(__file__).resolve().parents[2].parent / "shared" / "reference" / "folders"
FAMILIES = ("stable-diffusion-v1-5", "stable-diffusion-2-1-base", "stable-diffusion-inpainting")

PROMPTS = [
    "",
    " ",
    "a photo of a cat",
    "A PHOTO of a CaT, 4K!!!",
    "  many   spaces\tand\n\nlines  ",
    "12345 3.14159 1e-7 x2 2x",
    "it's we're I'll they'd don't can't THAT'S",
    "naïve café façade Ångström ÅNGSTRÖM",
    "İstanbul ǅ ß ẞ ﬁ Ⅻ",
    "猫が好き 고양이 кошка قطة 🐈‍⬛🐱🏳️‍🌈 👩‍👩‍👧",
    "!!! ! a!b !c! ?!",
    "<|startoftext|> in the middle <|endoftext|> of it",
    "a</w> b</w>, __under__ [brackets] (parens:1.3) {x|y} \\slash",
    "zero\u200bwidth soft\u00adhyphen nbsp\u00a0space \ufeffbom \u0000nul",
    "pneumonoultramicroscopicsilicovolcanoconiosis" * 3,
    "e\u0301 vs \u00e9",
    "masterpiece, best quality, " * 30,
    "🐱" * 120,
    "word " * 75,
    "word " * 76,
    "word " * 5000,
]
if tuple(map(int, version("tokenizers").split(".")[:2])) >= (0, 23):
    PROMPTS.append("the <|ENDOFTEXT|> <|STARTOFTEXT|>")  # an older engine keeps rules here that it does not write down


def make_tokenizer_folder(folder, pad="<|endoftext|>", length=77):
    """A CLIP tokenizer of 515 + 7 tokens: all bytes, alone and at a word's end, and a few merges."""
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("c", "a"), ("ca", "t</w>"), ("w", "o"), ("r", "d</w>"), ("wo", "rd</w>"), ("d", "o"), ("do", "g</w>")]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    bos, eos = ({"content": f"<|{name}oftext|>", **flags} for name in ("start", "end"))
    config = {
        "bos_token": {"__type": "AddedToken", **bos},
        "eos_token": {"__type": "AddedToken", **eos},
        "unk_token": {"__type": "AddedToken", **eos},
        "pad_token": "<|endoftext|>",
        "model_max_length": length,
        "tokenizer_class": "CLIPTokenizer",
    }
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    special = {"bos_token": bos, "eos_token": eos, "unk_token": eos, "pad_token": pad}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    return folder


def make_encoder(seed=0, **settings):
    """A randomly initialised CLIPTextModel of transformers."""
    from transformers import CLIPTextConfig, CLIPTextModel

    tiny = {
        "vocab_size": 600,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    }
    torch.manual_seed(seed)
    encoder = CLIPTextModel(CLIPTextConfig(**(tiny | settings)))
    with torch.no_grad():  # the library initialises biases and norms to 0 and 1, which would hide a mix-up
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder.eval()


def final_layer_norm(encoder):
    """The normalisation behind the encoder's last layer, one level down before transformers 5.6."""
    return getattr(encoder, "text_model", encoder).final_layer_norm
