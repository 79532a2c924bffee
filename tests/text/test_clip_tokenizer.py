import json
import os
import shutil

import pytest
from tiny_clip import FAMILIES, PROMPTS, REFERENCE, make_tokenizer_folder

from latentgen.text import load_clip_tokenizer, save_tokenizer
from latentgen.weights import WeightsError


def ids(tokenizer, prompts=PROMPTS):
    return tokenizer(prompts, padding="max_length", truncation=True, max_length=77).input_ids


def settings(tokenizer):
    return (tokenizer.special_tokens_map, tokenizer.model_max_length, len(tokenizer), tokenizer.added_tokens_encoder)


def theirs(folder):
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def edit(folder, name, **changes):
    content = json.loads((folder / name).read_text()) | changes
    (folder / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_ids_are_those_of_transformers(tokenizer_folder):
    ours, other = load_clip_tokenizer(tokenizer_folder), theirs(tokenizer_folder)
    assert settings(ours) == settings(other)
    assert ids(ours) == ids(other)


@pytest.mark.parametrize(("family", "pad"), [("stable-diffusion-v1-5", 49407), ("stable-diffusion-2-1-base", 0)])
def test_published_padding(family, pad):
    """Stable Diffusion 2 pads with "!", which only its special_tokens_map.json says."""
    folder = REFERENCE / family / "tokenizer"
    if not folder.is_dir():
        pytest.skip(f"the reference folder {family} is not on this machine")
    assert ids(load_clip_tokenizer(folder), ["a cat"]) == [[49406, 320, 2368, 49407] + [pad] * 73]


def test_saved_files_read_back(tokenizer_folder, tmp_path):
    original = load_clip_tokenizer(tokenizer_folder)
    ids(original, ["leaves truncation and padding switched on"])
    save_tokenizer(original, tmp_path / "saved")
    assert sorted(os.listdir(tmp_path / "saved")) == [
        "merges.txt",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    ]
    for load in (load_clip_tokenizer, theirs):
        assert settings(load(tmp_path / "saved")) == settings(original)
        assert ids(load(tmp_path / "saved")) == ids(original)
    content = json.loads((tmp_path / "saved" / "tokenizer.json").read_text())
    assert content["truncation"] is None
    assert content["padding"] is None


@pytest.mark.parametrize("tokenizer_folder", [FAMILIES[1], "tiny", "tiny padded with !"], indirect=True)
@pytest.mark.parametrize("form", ["tokenizer.json", "vocab.json", "transformers 5", "before added_tokens_decoder"])
def test_each_form_alone(tokenizer_folder, tmp_path, form):
    original = load_clip_tokenizer(tokenizer_folder)
    folder = tmp_path / "saved"
    if form == "transformers 5":
        original.save_pretrained(folder)
        assert not (folder / "vocab.json").exists()
    else:
        save_tokenizer(original, folder)
        unused = ["vocab.json", "merges.txt"] if form == "tokenizer.json" else ["tokenizer.json"]
        for name in unused:
            (folder / name).unlink()
    if form == "before added_tokens_decoder":
        edit(folder, "tokenizer_config.json", added_tokens_decoder=None)
    assert ids(load_clip_tokenizer(folder)) == ids(original) == ids(theirs(folder))
    assert settings(load_clip_tokenizer(folder)) == settings(original)


@pytest.mark.parametrize("tokenizer_folder", ["tiny", "tiny padded with !"], indirect=True)
@pytest.mark.parametrize("form", ["both", "vocab.json", "before added_tokens_decoder", "transformers 5"])
def test_added_tokens(tokenizer_folder, tmp_path, form):
    """Tokens that textual inversion added stay whole, in every form of the files."""
    original = load_clip_tokenizer(tokenizer_folder)
    size = len(original)
    original.add_tokens(["<my-cat>", "<my-cat>_1"])
    folder = tmp_path / "saved"
    if form == "transformers 5":
        original.save_pretrained(folder)
    else:
        save_tokenizer(original, folder)
    if form in {"vocab.json", "before added_tokens_decoder"}:
        (folder / "tokenizer.json").unlink()
    if form == "before added_tokens_decoder":
        edit(folder, "tokenizer_config.json", added_tokens_decoder=None)
    prompts = ["a <my-cat> <my-cat>_1", "<MY-CAT> <my-cat> on a mat", "!<my-cat>!"]
    again = load_clip_tokenizer(folder)
    assert again.convert_tokens_to_ids(["<my-cat>", "<my-cat>_1"]) == [size, size + 1]
    assert ids(again, prompts) == ids(original, prompts) == ids(theirs(folder), prompts)
    save_tokenizer(load_clip_tokenizer(tokenizer_folder), folder)
    assert not (folder / "added_tokens.json").exists()
    assert settings(load_clip_tokenizer(folder)) == settings(load_clip_tokenizer(tokenizer_folder))


def test_a_config_cannot_lead_elsewhere(tiny_folder, tmp_path, monkeypatch):
    """Keys that transformers would follow to other files, classes or repositories have no effect."""
    other = make_tokenizer_folder(tmp_path / "other", pad="!")
    before = settings(load_clip_tokenizer(tiny_folder))
    edit(
        tiny_folder,
        "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["evil.Evil", None]},
        vocab_file=str(other / "vocab.json"),
        tokenizer_file=str(other / "tokenizer.json"),
        special_tokens_map_file=str(other / "special_tokens_map.json"),
        gguf_file="model.gguf",
        init_inputs=["x"],
        name_or_path="owner/name",
        chat_template="{{ evil }}",
    )
    assert settings(load_clip_tokenizer(tiny_folder)) == before


def test_no_length_is_transformers_default(tiny_folder):
    edit(tiny_folder, "tokenizer_config.json", model_max_length=None)
    assert load_clip_tokenizer(tiny_folder).model_max_length == theirs(tiny_folder).model_max_length > 10**29


def test_only_the_vocabulary_is_needed(tiny_folder):
    (tiny_folder / "tokenizer_config.json").unlink()
    (tiny_folder / "special_tokens_map.json").unlink()
    assert ids(load_clip_tokenizer(tiny_folder)) == ids(theirs(tiny_folder))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.json", "{", r"vocab\.json is not JSON"),
        ("vocab.json", "{}", "not a vocabulary"),
        ("vocab.json", '{"a": "1"}', "not a vocabulary"),
        ("vocab.json", '{"a": -1}', "not a vocabulary"),
        ("merges.txt", "#version: 0.2\na b\na b c\n", r"merges\.txt: merge 2, 'a b c', is not two tokens"),
        ("merges.txt", "zz yy\n", "does not make a tokenizer"),
        ("tokenizer_config.json", '{"tokenizer_class": ["CLIPTokenizer"]}', r"describes a \['CLIPTokenizer'\]"),
        ("special_tokens_map.json", '{"pad_token": 3}', "'3' is not a special token"),
        ("special_tokens_map.json", '{"pad_token": {"lstrip": true}}', "is not a special token"),
        ("added_tokens.json", '{"a": "b"}', "not a table of tokens"),
        ("tokenizer_config.json", '{"tokenizer_class": "T5Tokenizer"}', "describes a T5Tokenizer"),
        ("tokenizer_config.json", '{"model_max_length": "77"}', "model_max_length='77'"),
        ("tokenizer_config.json", '{"model_max_length": 2}', "model_max_length=2"),
        ("tokenizer_config.json", '{"padding_side": "left"}', "padding_side='left' is not supported"),
        ("tokenizer_config.json", '{"truncation_side": "left"}', "truncation_side='left' is not supported"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": "y"}}', "added_tokens_decoder is not a table"),
        ("tokenizer_config.json", '{"added_tokens_decoder": []}', "added_tokens_decoder is not a table"),
        ("tokenizer.json", "[]", "holds a list"),
        ("tokenizer.json", "{}", "byte-pair encoding"),
        ("tokenizer.json", '{"model": {"type": "Unigram", "vocab": []}}', "byte-pair encoding"),
        ("tokenizer.json", '{"model": {"vocab": {"a": 0}}}', "no list of merges"),
        ("tokenizer.json", '{"model": {"vocab": {"a": 0}, "merges": [["a"]]}}', "merge 1"),
        ("tokenizer.json", '{"model": {"vocab": {"a": 0}, "merges": []}, "added_tokens": {}}', "not a list of tokens"),
        ("tokenizer.json", '{"model": {"vocab": {"a": 0}, "merges": []}, "added_tokens": [{"id": "x"}]}', "not a list"),
    ],
)
def test_bad_files(tiny_folder, name, content, message):
    (tiny_folder / name).write_text(content)
    with pytest.raises(WeightsError, match=message):
        load_clip_tokenizer(tiny_folder)


@pytest.mark.skipif(os.name != "posix", reason="links")
@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"]
)
def test_a_link_to_nothing_is_damage_and_not_a_file_left_out(tiny_folder, name):
    (tiny_folder / name).unlink(missing_ok=True)
    (tiny_folder / name).symlink_to(tiny_folder / "nowhere")
    with pytest.raises(WeightsError, match=rf"{name} is a link to a file that does not exist"):
        load_clip_tokenizer(tiny_folder)


def test_missing_files(tiny_folder):
    (tiny_folder / "merges.txt").unlink()
    with pytest.raises(
        WeightsError, match=r"holds no tokenizer.*vocab\.json with merges\.txt.*there is special_tokens_map"
    ):
        load_clip_tokenizer(tiny_folder)
    shutil.rmtree(tiny_folder)
    with pytest.raises(WeightsError, match="tokenizer is missing"):
        load_clip_tokenizer(tiny_folder)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("added_tokens.json", {f"<{k}>": 600 + k for k in range(5000)}, "is not a table of tokens"),
        ("added_tokens.json", {"a" * 300: 600}, "is not a special token"),
        ("added_tokens.json", {"x": -1}, "is not a table of tokens"),
        ("added_tokens.json", {"\udc00": 600}, "is not a special token"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"9" * 5000: {"content": "x"}}}, "is not a table of ids"),
        ("tokenizer_config.json", {"bos_token": "\ud800"}, "is not a special token"),
        ("vocab.json", {f"{k}": k for k in range(300_000)}, "is not a vocabulary"),
    ],
)
def test_files_that_would_take_minutes_or_be_no_text(tmp_path, name, content, why):
    folder = make_tokenizer_folder(tmp_path / "tokenizer")
    path = folder / name
    there = json.loads(path.read_text()) if path.exists() and name != "vocab.json" else {}
    path.write_text(json.dumps({**there, **content}))
    with pytest.raises(WeightsError, match=why):
        load_clip_tokenizer(folder)
