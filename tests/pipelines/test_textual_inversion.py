"""Embeddings on pipelines: words that they give a meaning to, files that are refused, and unloading."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny_lora as tiny
import torch

from latentgen.models.ldm_bert import LDMBertConfig, LDMBertModel
from latentgen.pipelines.img2img import Img2ImgPipeline
from latentgen.pipelines.text2image import Text2ImagePipeline
from latentgen.text import encode_prompts, tokenize
from latentgen.weights.errors import WeightsError

CALL = {"num_inference_steps": 2, "seed": 5, "output_type": "pt"}


def embedding(path, name="<cat>", shape=(32,), seed=1, kind=torch.float32):
    return tiny.write(path, {name: tiny.noise(*shape, seed=seed).to(kind)})


def states(pipe, *prompts):
    parts = pipe.adapted()()
    return encode_prompts(parts.tokenizer, parts.text_encoder, prompts, runs=parts.runs)


def ids(pipe, prompt):
    parts = pipe.adapted()()
    return tokenize(parts.tokenizer, [prompt], runs=parts.runs)[0].tolist()


@pytest.mark.parametrize(
    ("name", "shape", "token", "expected"),
    [
        ("<cat>", (32,), None, "<cat>"),
        ("<cat>", (3, 32), None, "<cat>"),
        ("<cat>", (3, 32), "<mine>", "<mine>"),
        ("emb_params", (2, 32), None, "bad-hands"),
        ("clip_l", (2, 32), None, "bad-hands"),
        ("emb_params", (1, 32), "a word of three", "a word of three"),
    ],
)
@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
def test_the_vectors_stand_where_the_word_is(pipe, tmp_path, name, shape, token, expected, kind):
    path = embedding(tmp_path / "bad-hands.safetensors", name, shape, kind=kind)
    vectors = tiny.noise(*shape, seed=1).to(kind).float().reshape(-1, 32)
    assert pipe.load_textual_inversion(path, token) == expected
    got = ids(pipe, f"a {expected} b")
    plain = tokenize(pipe.tokenizer, ["a b"])[0].tolist()
    new = got[2 : 2 + len(vectors)]
    assert got[:2] + got[2 + len(vectors) : 4 + len(vectors)] == plain[:4]
    assert not set(new) & set(pipe.tokenizer.get_vocab().values())
    table = pipe.adapted()().text_encoder.get_input_embeddings().weight
    assert torch.equal(table[new], vectors)


def test_unloading_gives_old_prompts_their_embeddings_back(pipe, tmp_path):
    prompts = ("a <cat>", "<dog> and <cat>", "a photo")
    tensors = [tensor.clone() for tensor in pipe.text_encoder.state_dict().values()]
    vocabulary, before = dict(pipe.tokenizer.get_vocab()), states(pipe, *prompts)
    first = pipe(list(prompts), **CALL).images
    pipe.load_textual_inversion(embedding(tmp_path / "a.safetensors", shape=(3, 32)))
    pipe.load_textual_inversion(embedding(tmp_path / "b.safetensors", "<dog>", (2, 32), seed=2))
    both = states(pipe, *prompts)
    assert [torch.equal(one, other) for one, other in zip(both, before, strict=True)] == [False, False, True]
    pipe.unload_textual_inversion("<cat>")
    one = states(pipe, *prompts)
    assert torch.equal(one[0], before[0])
    assert not torch.equal(one[1], before[1])
    pipe.unload_textual_inversion()
    assert torch.equal(states(pipe, *prompts), before)
    assert torch.equal(pipe(list(prompts), **CALL).images, first)
    assert pipe.tokenizer.get_vocab() == vocabulary
    assert all(torch.equal(a, b) for a, b in zip(pipe.text_encoder.state_dict().values(), tensors, strict=True))


def test_a_tokenizer_that_was_called_before(pipe, tmp_path):
    """Its calls leave padding and truncation set on it."""
    path = embedding(tmp_path / "a.safetensors", shape=(2, 32))
    pipe.tokenizer = copy.deepcopy(pipe.tokenizer)
    pipe.load_textual_inversion(path)
    expected = ids(pipe, "a <cat> b")
    pipe.unload_textual_inversion()
    pipe.tokenizer("a", padding="max_length", truncation=True, max_length=7)
    pipe.load_textual_inversion(path)
    assert ids(pipe, "a <cat> b") == expected


def test_capitals_mean_the_same(pipe, tmp_path):
    pipe.load_textual_inversion(embedding(tmp_path / "a.safetensors", "<My-Cat>", shape=(3, 32)))
    assert ids(pipe, "a <MY-CAT> b") == ids(pipe, "a <my-cat> b") == ids(pipe, "a <My-Cat> b")
    assert len(set(ids(pipe, "<my-cat>"))) == 5


def test_with_a_lora_of_the_text_encoder(pipe, tmp_path):
    text = tiny.factors(pipe.text_encoder, tiny.TEXT)
    path = tiny.write(tmp_path / "lora.safetensors", tiny.kohya(text=text))
    plain = states(pipe, "a <cat>", "a photo")
    pipe.load_lora(path, 0.5)
    changed = states(pipe, "a <cat>", "a photo")
    pipe.load_textual_inversion(embedding(tmp_path / "a.safetensors"))
    both = states(pipe, "a <cat>", "a photo")
    assert torch.equal(both[1], changed[1])
    assert not torch.equal(both[0], changed[0])
    pipe.unload_lora()
    assert torch.equal(states(pipe, "a <cat>", "a photo")[1], plain[1])


def test_what_is_cut_counts_all_vectors(pipe, tmp_path):
    pipe.load_textual_inversion(embedding(tmp_path / "a.safetensors", shape=(40, 32)))
    with pytest.warns(UserWarning, match=r"has 83 tokens and the text encoder reads 75; .*: 'd d d d d d d d'"):
        pipe("<cat> " + "c " * 35 + "d d d d d d d d", **CALL)


@pytest.mark.parametrize(
    ("tensors", "token", "reason"),
    [
        (
            {"<a>": torch.ones(24)},
            None,
            "made for another text encoder: its vectors have 24 numbers, and this one's 32",
        ),
        ({"<a>": torch.ones(2, 24)}, None, "another text encoder"),
        ({"<a>": torch.ones(1, 2, 32)}, None, "no embedding"),
        ({"<a>": torch.ones(32, dtype=torch.int64)}, None, "torch.int64"),
        ({"<a>": torch.ones(0, 32)}, None, "no embedding"),
        ({"<a>": torch.tensor(1.0)}, None, "no embedding"),
        ({"<a>": torch.full((32,), torch.nan)}, None, "not finite"),
        ({"<a>": torch.ones(76, 32)}, None, "has 76 vectors"),
        ({"<a>": torch.ones(32), "<b>": torch.ones(32)}, None, r"2 tensors \(<a>, <b>\)"),
        ({}, None, "0 tensors"),
        ({"clip_l": torch.ones(32), "clip_g": torch.ones(40)}, None, "Stable Diffusion XL"),
        ({"cat": torch.ones(32)}, None, "token='cat' is in the tokenizer's vocabulary already.*token="),
        ({"DOG": torch.ones(32)}, None, "token='DOG' is in the tokenizer's vocabulary already"),
        ({"<|endoftext|>": torch.ones(32)}, None, "vocabulary already"),
        ({"<a>": torch.ones(32)}, " <a>", "without spaces around"),
        ({"<a>": torch.ones(32)}, "", "must be a text"),
        ({"<a>": torch.ones(32)}, "<cat>", "loaded already: unload_textual_inversion"),
        ({"<a>": torch.ones(32)}, "<CAT>", "vocabulary|loaded already"),
    ],
)
def test_what_is_no_embedding_is_refused(pipe, tmp_path, tensors, token, reason):
    pipe.load_textual_inversion(embedding(tmp_path / "a.safetensors"))
    before = states(pipe, "a <cat> <a>")
    with pytest.raises(ValueError, match=reason):
        pipe.load_textual_inversion(tiny.write(tmp_path / "bad.safetensors", tensors), token)
    assert torch.equal(states(pipe, "a <cat> <a>"), before)


@pytest.mark.parametrize("name", ["learned_embeds.bin", "style.pt"])
def test_a_pickle_is_not_opened(pipe, tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(WeightsError, match=f"latentgen convert {name}"):
        pipe.load_textual_inversion(tmp_path / name)


def test_unloading_what_is_not_there(pipe, tmp_path):
    with pytest.raises(ValueError, match="'<cat>' is not loaded; there are none is loaded"):
        pipe.unload_textual_inversion("<cat>")
    pipe.unload_textual_inversion()


def test_other_components_and_pipelines(pipe, tmp_path):
    pipe.load_textual_inversion(embedding(tmp_path / "a.safetensors", shape=(2, 32)))
    expected = states(pipe, "a <cat>")
    other = Img2ImgPipeline.from_pipe(pipe)
    pipe.tokenizer = copy.deepcopy(pipe.tokenizer)
    assert torch.equal(states(pipe, "a <cat>"), expected)
    knows = copy.deepcopy(pipe.tokenizer)
    knows.add_tokens(["<cat>"])
    with pytest.raises(ValueError, match="vocabulary already"):
        pipe.tokenizer = knows
    assert torch.equal(states(pipe, "a <cat>"), expected)
    pipe.unload_textual_inversion()
    assert torch.equal(states(other, "a <cat>"), expected)


def test_a_call_keeps_the_words_that_it_began_with(pipe, tmp_path):
    pipe.load_textual_inversion(embedding(tmp_path / "a.safetensors"))
    begun = pipe.adapted()
    pipe.unload_textual_inversion()
    pipe.load_textual_inversion(embedding(tmp_path / "a.safetensors", shape=(2, 32), seed=9))
    old, new = begun(), pipe.adapted()()
    table = old.text_encoder.get_input_embeddings().weight
    number = old.tokenizer.convert_tokens_to_ids("<cat>")
    assert torch.equal(table[number], tiny.noise(32, seed=1))
    assert torch.equal(new.text_encoder.get_input_embeddings().weight[number], tiny.noise(2, 32, seed=9)[0])


def test_threads_load_and_draw_at_once(pipe, tmp_path):
    paths = [embedding(tmp_path / f"{k}.safetensors", f"<word-{k}>", (2, 32), seed=k) for k in range(6)]
    alone = []
    for path in paths:
        token = pipe.load_textual_inversion(path)
        alone.append(states(pipe, f"a {token}"))
        pipe.unload_textual_inversion()

    def run(k):
        token = pipe.load_textual_inversion(paths[k])
        return [states(pipe, f"a {token}") for _ in range(5)]

    with ThreadPoolExecutor(6) as pool:
        for expected, got in zip(alone, pool.map(run, range(6)), strict=True):
            assert all(torch.equal(expected, one) for one in got)


def test_ldms_text_encoder_takes_them_too(pipe, tmp_path):
    from transformers import BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of"]
    torch.manual_seed(0)
    config = LDMBertConfig(
        vocab_size=20, d_model=32, encoder_layers=2, encoder_ffn_dim=64, encoder_attention_heads=2, head_dim=8
    )
    encoder = LDMBertModel(config).eval().requires_grad_(False)
    tokenizer = BertTokenizer(vocab={word: k for k, word in enumerate(words)}, model_max_length=77)
    other = Text2ImagePipeline.from_pipe(pipe, text_encoder=encoder, tokenizer=tokenizer)
    before = states(other, "a photo of <cat>")
    layer = "model.layers.1.self_attn.q_proj"
    lora = tiny.write(tmp_path / "l.safetensors", tiny.peft(text=tiny.factors(encoder, [layer]), prefix=""))
    other.load_lora(lora)
    assert not torch.equal(states(other, "a photo of <cat>"), before)
    other.unload_lora()
    other.load_textual_inversion(embedding(tmp_path / "a.safetensors", shape=(3, 32)))
    assert not torch.equal(states(other, "a photo of <cat>"), before)
    assert torch.equal(
        other.adapted()().text_encoder.model.embed_tokens.weight[:8], encoder.model.embed_tokens.weight[:8]
    )
    other.unload_textual_inversion()
    assert torch.equal(states(other, "a photo of <cat>"), before)
