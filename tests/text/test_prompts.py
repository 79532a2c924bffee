import gc
import pickle
import threading
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny_clip import PROMPTS, final_layer_norm, make_encoder, make_tokenizer_folder

from latentgen.text import encode_prompts, load_clip_tokenizer, prompts, tokenize


@pytest.fixture
def tokenizer(tiny_folder):
    return load_clip_tokenizer(tiny_folder)


@pytest.fixture(scope="module")
def encoder():
    return make_encoder()


def expected_ids(tokenizer, texts, length=77):
    return torch.tensor(tokenizer(texts, padding="max_length", truncation=True, max_length=length).input_ids)


@pytest.mark.filterwarnings("ignore:The prompt has")
def test_ids_are_those_of_transformers(tokenizer_folder):
    tokenizer = load_clip_tokenizer(tokenizer_folder)
    ids = tokenize(tokenizer, PROMPTS)
    assert ids.dtype == torch.int64
    assert torch.equal(ids, expected_ids(tokenizer, PROMPTS))
    assert torch.equal(tokenize(tokenizer, PROMPTS, max_length=20), expected_ids(tokenizer, PROMPTS, 20))


@pytest.mark.filterwarnings("ignore:The prompt has")
def test_settings_of_another_caller_do_not_matter(tokenizer):
    expected_ids(tokenizer, ["cat"], 5)
    ids = tokenize(tokenizer, PROMPTS)
    assert torch.equal(ids, expected_ids(tokenizer, PROMPTS))
    expected_ids(tokenizer, ["cat"], 5)
    assert torch.equal(tokenize(tokenizer, PROMPTS), ids)


def test_tokens_added_later_count(tokenizer):
    before = tokenize(tokenizer, ["a <my-cat>"])
    tokenizer.add_tokens(["<my-cat>"])
    ids = tokenize(tokenizer, ["a <my-cat>"])
    assert len(tokenizer) - 1 in ids
    assert len(tokenizer) - 1 not in before
    assert torch.equal(ids, expected_ids(tokenizer, ["a <my-cat>"]))


def test_a_tokenizers_copy_goes_with_it(tiny_folder):
    tokenizer = load_clip_tokenizer(tiny_folder)
    tokenize(tokenizer, ["cat"])
    assert tokenizer in prompts._backends
    reference = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert reference() is None


def test_eight_threads(tokenizer, encoder):
    """With a tokenizer that other threads use in transformers' way at the same time."""
    texts = ["cat " * n for n in range(1, 76)]
    expected = expected_ids(tokenizer, texts)
    with ThreadPoolExecutor(1) as one:
        embedded = one.submit(encode_prompts, tokenizer, encoder, texts[:4], clip_skip=1).result()
    fresh = load_clip_tokenizer_again(tokenizer)
    start, stop = threading.Barrier(8), threading.Event()

    def disturb():
        length = 3
        while not stop.is_set():
            length = 3 + length % 70
            try:
                fresh(["cat dog"], padding="max_length", truncation=True, max_length=length)
            except RuntimeError as error:  # the very failure that must not reach the other threads
                assert "borrowed" in str(error)  # noqa: PT017

    def work(number):
        start.wait()
        for i in range(number, number + 60):
            n = i % 75
            assert torch.equal(tokenize(fresh, texts[n : n + 1]), expected[n : n + 1])
        assert torch.equal(encode_prompts(fresh, encoder, texts[:4], clip_skip=1), embedded)

    disturbers = [threading.Thread(target=disturb) for _ in range(2)]
    for thread in disturbers:
        thread.start()
    try:
        with ThreadPoolExecutor(8) as pool:
            for done in [pool.submit(work, 7 * number) for number in range(8)]:
                done.result(timeout=60)
    finally:
        stop.set()
        for thread in disturbers:
            thread.join()


def load_clip_tokenizer_again(tokenizer):
    """A copy that no call has touched yet, so that the threads also race for the first one."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer(
        vocab=tokenizer.get_vocab(),
        merges=[("c", "a"), ("ca", "t</w>")],
        model_max_length=77,
        pad_token=tokenizer.pad_token,
    )


def warnings_of(tokenizer, texts, **settings):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tokenize(tokenizer, texts, **settings)
    return [str(warning.message) for warning in caught]


def test_what_is_cut_is_quoted(tokenizer):
    assert warnings_of(tokenizer, ["cat " * 75, "", "word"]) == []
    (message,) = warnings_of(tokenizer, ["cat " * 75 + "DOG, \n the  End", "word"])
    assert "79 tokens" not in message
    assert "the text encoder reads 75" in message
    assert "'DOG, \\n the  End'" in message, "as it was written"
    assert len(warnings_of(tokenizer, ["cat " * 76, "word " * 76])) == 2


@pytest.mark.parametrize(("text", "lost"), [("cat 🐱", "🐱"), ("cat É x", "É x"), ("cat caterpillar", "terpillar")])
def test_a_cut_inside_a_character_or_word(tokenizer, text, lost):
    """Some tokens of the last word still fit; the rest of it is lost, and a character that is lost in part."""
    (message,) = warnings_of(tokenizer, [text], max_length=4)
    assert repr(lost) in message


def test_a_very_long_text_is_quoted_in_part(tokenizer):
    (message,) = warnings_of(tokenizer, ["word " * 100_000])
    assert len(message) < 1500
    assert "characters)" in message


@pytest.mark.parametrize("text", ["caf\udce9", "\ud83d\ud83d", "cat \udc31"])
def test_what_is_no_character(tokenizer, text):
    with pytest.raises(ValueError, match=r"at position \d a code that is no character"):
        tokenize(tokenizer, ["cat", text])
    assert tokenize(tokenizer, ["🐱 \U0010ffff \0"]).shape == (1, 77)


def test_a_cut_prompt_is_told_at_every_call_and_at_the_callers_line(tokenizer):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            tokenize(tokenizer, ["cat " * 76])
    assert [warning.filename for warning in caught] == [__file__] * 3


@pytest.fixture
def strange_defaults():
    """What another library may have set for its own tensors."""
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


def test_defaults_of_torch_do_not_matter(tokenizer, encoder, request):
    ids, states = tokenize(tokenizer, ["a cat"]), encode_prompts(tokenizer, encoder, ["a cat"], clip_skip=1)
    request.getfixturevalue("strange_defaults")
    assert torch.equal(tokenize(tokenizer, ["a cat"]), ids)
    assert torch.equal(encode_prompts(tokenizer, encoder, ["a cat"], clip_skip=1), states)


def test_values_that_are_not_finite_are_the_encoders(tokenizer):
    broken = make_encoder()
    with torch.no_grad():
        final_layer_norm(broken).bias.fill_(torch.nan)
    with pytest.raises(
        FloatingPointError, match=r"text encoder \(text_encoder\) .* in torch.float32: check its weights\."
    ):
        encode_prompts(tokenizer, broken, ["cat"])
    with pytest.raises(FloatingPointError, match=r"in torch\.bfloat16: .* dtype='float32'"):
        encode_prompts(tokenizer, broken.bfloat16(), ["cat"], clip_skip=1)


@pytest.mark.parametrize("texts", ["a cat", [1], [None], ["a", b"b"]])
def test_what_is_not_a_list_of_texts(tokenizer, texts):
    with pytest.raises(TypeError, match="is not a list of texts"):
        tokenize(tokenizer, texts)


def test_an_empty_list(tokenizer):
    with pytest.raises(ValueError, match="prompts is empty"):
        tokenize(tokenizer, [])


@pytest.mark.parametrize("length", [2, 0, -1, 10**30])
def test_what_is_not_a_length(tokenizer, length):
    with pytest.raises(ValueError, match="not a prompt's length: pass max_length, 77"):
        tokenize(tokenizer, ["cat"], max_length=length)


def test_a_tokenizer_without_a_length_takes_the_encoders(tmp_path, encoder):
    tokenizer = load_clip_tokenizer(make_tokenizer_folder(tmp_path / "t", length=None))
    with pytest.raises(ValueError, match="not a prompt's length"):
        tokenize(tokenizer, ["cat"])
    assert encode_prompts(tokenizer, encoder, ["cat"]).shape == (1, 77, 32)
    assert encode_prompts(tokenizer, make_encoder(max_position_embeddings=10), ["cat"]).shape == (1, 10, 32)


def by_hand(encoder, ids, skip):
    """CLIP's text transformer written out, with the encoder's weights (Radford et al. 2021)."""
    encoder = getattr(encoder, "text_model", encoder)
    x = encoder.embeddings.token_embedding(ids) + encoder.embeddings.position_embedding.weight[: ids.shape[1]]
    mask = torch.full((ids.shape[1], ids.shape[1]), -torch.inf).triu(1)
    layers = encoder.encoder.layers
    for layer in layers[: len(layers) - skip]:
        a, h = layer.self_attn, layer.layer_norm1(x)
        q, k, v = (p(h).unflatten(-1, (4, -1)).transpose(1, 2) for p in (a.q_proj, a.k_proj, a.v_proj))
        weights = (q @ k.mT / q.shape[-1] ** 0.5 + mask).softmax(-1)
        x = x + a.out_proj((weights @ v).transpose(1, 2).flatten(2))
        h = layer.mlp.fc1(layer.layer_norm2(x))
        x = x + layer.mlp.fc2(h * torch.sigmoid(1.702 * h))
    return encoder.final_layer_norm(x)


@pytest.mark.parametrize("skip", [None, 0, 1, 2])
def test_embeddings(tokenizer, encoder, skip):
    texts = ["a cat", "", "DOG word cat"]
    result = encode_prompts(tokenizer, encoder, texts, clip_skip=skip)
    with torch.no_grad():
        expected = by_hand(encoder, expected_ids(tokenizer, texts), skip or 0)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    assert not result.requires_grad
    assert result.shape == (3, 77, 32)
    others = [encode_prompts(tokenizer, encoder, texts, clip_skip=k) for k in range(3) if k != (skip or 0)]
    assert all((result - other).abs().max() > 0.1 for other in others)


def test_the_encoder_is_untouched_by_a_skip(tokenizer):
    encoder = make_encoder()
    before = pickle.dumps(encoder)
    encode_prompts(tokenizer, encoder, ["a cat"], clip_skip=1)
    assert len(pickle.dumps(encoder)) == len(before)
    assert not any(module._forward_hooks for module in encoder.modules())


def test_skipped_layers_are_not_computed(tokenizer):
    encoder = make_encoder()
    layers = getattr(encoder, "text_model", encoder).encoder.layers
    seen = []
    for index, layer in enumerate(layers):
        layer.register_forward_hook(lambda *_, index=index: seen.append(index))
    encode_prompts(tokenizer, encoder, ["a cat"], clip_skip=2)
    assert seen == list(range(len(layers) - 2))


def test_no_skip_is_exactly_the_encoders_output(tokenizer, encoder):
    with torch.no_grad():
        expected = encoder(expected_ids(tokenizer, ["a cat"])).last_hidden_state
    assert torch.equal(encode_prompts(tokenizer, encoder, ["a cat"]), expected)


@pytest.mark.parametrize("skip", [-1, 3, 100, 1.0, "1", True])
def test_what_cannot_be_skipped(tokenizer, encoder, skip):
    with pytest.raises(ValueError, match=r"clip_skip=.*has 3, so give 0 to 2"):
        encode_prompts(tokenizer, encoder, ["cat"], clip_skip=skip)


def test_embeddings_are_in_the_encoders_dtype(tokenizer):
    assert encode_prompts(tokenizer, make_encoder().bfloat16(), ["cat"], clip_skip=1).dtype == torch.bfloat16


def test_a_token_that_the_encoder_does_not_know(tokenizer):
    small = make_encoder(vocab_size=len(tokenizer))
    encode_prompts(tokenizer, small, ["cat <my-cat>"])
    tokenizer.add_tokens(["<my-cat>"])
    with pytest.raises(ValueError, match=r"token '<my-cat>' has the id \d+, but the text encoder knows \d+ tokens"):
        encode_prompts(tokenizer, small, ["cat <my-cat>"])


@pytest.mark.cuda
def test_embeddings_are_on_the_encoders_device(tokenizer):
    assert encode_prompts(tokenizer, make_encoder().to("cuda"), ["cat"], clip_skip=1).device.type == "cuda"
