"""`latentgen info` and `latentgen convert`, as functions: what is said of files, and from one form to another."""

import json
import os
import shutil

import pytest
import torch
from test_single_file import ENCODER, F8, SD1_UNET, load, same_networks
from tiny_sd import make_model_folder

from latentgen import AutoencoderKL
from latentgen.pipelines import Text2ImagePipeline
from latentgen.pipelines.convert import convert
from latentgen.pipelines.describe import describe
from latentgen.weights import WeightsError
from latentgen.weights.compvis import families
from latentgen.weights.compvis.families import FAMILIES
from latentgen.weights.compvis.recognise import grouped, look
from latentgen.weights.compvis.single_file import averaged_name
from latentgen.weights.safetensors_io import open_tensors, read_header, read_tensors, write_tensors


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_model_folder(tmp_path_factory.mktemp("sd1") / "model", unet=SD1_UNET, vae=F8, encoder=ENCODER)


@pytest.fixture(scope="module")
def pipe(folder):
    return Text2ImagePipeline.from_pretrained(folder, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def file(pipe, folder, tmp_path_factory):
    """The model in one file, and a tokenizer beside it."""
    path = tmp_path_factory.mktemp("file") / "model.safetensors"
    pipe.save_single_file(path, family="sd-v1", metadata={"modelspec.author": "a test"})
    shutil.copytree(folder / "tokenizer", path.parent / "tokenizer")
    return path


@pytest.fixture
def known(file, monkeypatch):
    """The tiny model's widths as those of Stable Diffusion 1."""
    from dataclasses import replace

    looks = look(grouped(open_tensors(file)))
    monkeypatch.setitem(families.FAMILIES, "sd-v1", replace(FAMILIES["sd-v1"], looks=looks))


class TestConvert:
    def test_a_file_becomes_a_folder_and_a_file_again(self, file, pipe, tmp_path):
        assert convert(file, tmp_path / "folder", family="sd-v1") == tmp_path / "folder"
        again = Text2ImagePipeline.from_pretrained(tmp_path / "folder", device="cpu", dtype="float32")
        same_networks(Text2ImagePipeline(**{**pipe.components, "scheduler": again.scheduler}), again)
        convert(tmp_path / "folder", tmp_path / "again.safetensors", family="sd-v1")
        first, second = read_tensors(file), read_tensors(tmp_path / "again.safetensors")
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)

    @pytest.mark.parametrize("dtype", ["fp16", "bf16", torch.float32])
    def test_the_dtype_of_what_is_written(self, file, pipe, tmp_path, dtype):
        kind = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(dtype, dtype)
        convert(file, tmp_path / "a.safetensors", family="sd-v1", dtype=dtype)
        convert(file, tmp_path / "folder", family="sd-v1", dtype=dtype)
        written = read_tensors(tmp_path / "a.safetensors")
        original = read_tensors(file)
        assert all(torch.equal(written[name], original[name].to(kind)) for name in original)
        unet = read_tensors(tmp_path / "folder" / "unet" / "diffusion_pytorch_model.safetensors")
        assert all(torch.equal(unet[name], tensor.to(kind)) for name, tensor in pipe.unet.state_dict().items())

    def test_without_a_dtype_files_keep_theirs(self, file, tmp_path):
        half = {name: t.half() if "first_stage" in name else t for name, t in read_tensors(file).items()}
        write_tensors(tmp_path / "mixed.safetensors", half)
        convert(
            tmp_path / "mixed.safetensors", tmp_path / "folder", family="sd-v1", tokenizer=file.parent / "tokenizer"
        )
        kinds = {
            name: {t.dtype for t in read_tensors(tmp_path / "folder" / name / f"{stem}.safetensors").values()}
            for name, stem in (
                ("unet", "diffusion_pytorch_model"),
                ("vae", "diffusion_pytorch_model"),
                ("text_encoder", "model"),
            )
        }
        assert kinds == {"unet": {torch.float32}, "vae": {torch.float16}, "text_encoder": {torch.float32}}

    @pytest.mark.parametrize(("weights", "factor"), [(None, 3), ("ema", 3), ("train", 1)])
    def test_the_average_or_the_weights(self, file, tmp_path, weights, factor):
        tensors = read_tensors(file)
        prefix = "model.diffusion_model."
        average = {
            f"model_ema.{averaged_name(n[len(prefix) :])}": t * 3 for n, t in tensors.items() if n.startswith(prefix)
        }
        write_tensors(tmp_path / "both.safetensors", tensors | average | {"betas": torch.ones(3)})
        convert(tmp_path / "both.safetensors", tmp_path / "one.safetensors", family="sd-v1", weights=weights)
        written = read_tensors(tmp_path / "one.safetensors")
        assert written.keys() == tensors.keys() | {"betas"}
        assert torch.equal(written[prefix + "out.2.bias"], tensors[prefix + "out.2.bias"] * factor)

    def test_a_checkpoint_in_a_pickle(self, file, pipe, tmp_path):
        torch.save({"epoch": 1, "state_dict": read_tensors(file)}, tmp_path / "model.ckpt")
        convert(tmp_path / "model.ckpt", tmp_path / "model.safetensors", family="sd-v1")
        same_networks(pipe, load(Text2ImagePipeline, tmp_path / "model.safetensors", file.parent))
        convert(tmp_path / "model.ckpt", tmp_path / "folder", family="sd-v1", tokenizer=file.parent / "tokenizer")
        assert (tmp_path / "folder" / "model_index.json").is_file()

    def test_what_is_no_whole_model_keeps_its_tensors(self, tmp_path):
        tensors = {"lora_unet_x.lora_up.weight": torch.randn(3, 2), "lora_unet_x.alpha": torch.tensor(4)}
        write_tensors(tmp_path / "a.safetensors", tensors, {"ss_network_dim": "2"})
        convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", dtype="float16")
        written = read_tensors(tmp_path / "b.safetensors")
        assert written["lora_unet_x.lora_up.weight"].dtype == torch.float16
        assert written["lora_unet_x.alpha"].dtype == torch.int64
        assert read_header(tmp_path / "b.safetensors").metadata["ss_network_dim"] == "2"
        with pytest.raises(ValueError, match=r"a\.safetensors holds no whole model: .*adapter"):
            convert(tmp_path / "a.safetensors", tmp_path / "folder")

    def test_metadata_is_kept_and_what_is_not_true_anymore_is_not(self, file, tmp_path):
        extra = {"modelspec.hash_sha256": "0x00", "modelspec.architecture": "wrong", "note": "kept"}
        write_tensors(tmp_path / "a.safetensors", read_tensors(file), extra)
        convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", family="sd-v1")
        said = read_header(tmp_path / "b.safetensors").metadata
        assert said["note"] == "kept"
        assert said["modelspec.architecture"] == "stable-diffusion-v1"
        assert "modelspec.hash_sha256" not in said

    @pytest.mark.parametrize(
        ("target", "message"),
        [("out.ckpt", "would be a pickle"), ("taken", "is a file: a single file's name ends in")],
    )
    def test_targets_that_cannot_be(self, file, tmp_path, target, message):
        (tmp_path / "taken").write_text("x")
        with pytest.raises(ValueError, match=message):
            convert(file, tmp_path / target, family="sd-v1")
        assert os.listdir(tmp_path) == ["taken"]

    def test_a_part_of_a_model_and_another_name_of_its_family(self, file, tmp_path):
        unet = {name: t for name, t in read_tensors(file).items() if name.startswith("model.")}
        write_tensors(tmp_path / "unet.safetensors", unet)
        convert(tmp_path / "unet.safetensors", tmp_path / "half.safetensors", family="sd-v1", dtype="fp16")
        assert read_tensors(tmp_path / "half.safetensors").keys() == unet.keys()
        for words, message in (({"family": "sd-v9"}, "family='sd-v9' is unknown"), ({"weights": "best"}, "weights='best' must"),
                               ({"prediction_type": "x"}, "prediction_type='x' must")):  # fmt: skip
            with pytest.raises(ValueError, match=message):
                convert(file, tmp_path / "out.safetensors", **{"family": "sd-v1", **words})

    def test_options_without_effect_are_refused(self, file, folder, tmp_path):
        with pytest.raises(ValueError, match=r"variant='fp16' has no meaning for .*, which is a file"):
            convert(file, tmp_path / "out", variant="fp16")
        with pytest.raises(ValueError, match=r"weights='ema' has no meaning for .*, which is a folder"):
            convert(folder, tmp_path / "out.safetensors", weights="ema")

    @pytest.mark.parametrize(
        ("value", "dtype", "why"),
        [(1e6, "fp16", "may be too large for torch.float16"), (float("nan"), None, "the file is damaged")],
    )
    def test_what_cannot_be_used_is_not_written(self, file, tmp_path, value, dtype, why):
        tensors = read_tensors(file)
        tensors["first_stage_model.decoder.conv_in.weight"].view(-1)[0] = value
        write_tensors(tmp_path / "a.safetensors", tensors)
        write_tensors(tmp_path / "lora.safetensors", {"lora_unet_x.lora_up.weight": torch.tensor([value])})
        for source, name, family in (("a", "conv_in.weight", "sd-v1"), ("lora", "lora_up.weight", None)):
            with pytest.raises(
                WeightsError, match=rf"{source}\.safetensors: .*{name} has values that are not finite; .*{why}"
            ):
                convert(tmp_path / f"{source}.safetensors", tmp_path / "out.safetensors", family=family, dtype=dtype)
        assert not (tmp_path / "out.safetensors").exists()

    def test_tables_of_the_schedule_keep_their_dtype_and_the_author_his_title(self, file, tmp_path):
        betas = torch.linspace(0.00085, 0.012, 1000)
        write_tensors(tmp_path / "a.safetensors", read_tensors(file) | {"betas": betas}, {"modelspec.title": "Mine"})
        convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", family="sd-v1", dtype="fp16")
        assert torch.equal(read_tensors(tmp_path / "b.safetensors")["betas"], betas)
        assert read_header(tmp_path / "b.safetensors").metadata["modelspec.title"] == "Mine"

    def test_nothing_is_mixed_into_a_folder_of_other_things(self, file, tmp_path):
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "cat.png").write_text("x")
        with pytest.raises(ValueError, match="holds other things than a model"):
            convert(file, tmp_path / "photos", family="sd-v1", tokenizer=file.parent / "tokenizer")
        with pytest.raises(ValueError, match=r"X\.SAFETENSORS must end in \.safetensors"):
            convert(file, tmp_path / "X.SAFETENSORS", family="sd-v1")
        assert os.listdir(tmp_path) == ["photos"]

    def test_sources_that_cannot_be(self, tmp_path):
        with pytest.raises(WeightsError, match="does not exist"):
            convert(tmp_path / "absent.safetensors", tmp_path / "out")
        (tmp_path / "empty").mkdir()
        with pytest.raises(WeightsError, match="holds no whole model"):
            convert(tmp_path / "empty", tmp_path / "out.safetensors")
        with pytest.raises(ValueError, match="dtype='int8' must be one of"):
            convert(tmp_path / "empty", tmp_path / "out.safetensors", dtype="int8")


class TestLoRA:
    """Adapters in the weights: what a pipeline with them draws, one without them draws from what was written."""

    @pytest.fixture
    def lora(self, pipe, tmp_path):
        torch.manual_seed(0)
        layers = {"unet": "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
                  "text_encoder": "text_model.encoder.layers.0.self_attn.q_proj"}  # fmt: skip
        tensors = {}
        for network, layer in layers.items():
            out, into = (32, 64) if network == "unet" else (64, 64)
            tensors[f"{network}.{layer}.lora_A.weight"] = torch.randn(2, into)
            tensors[f"{network}.{layer}.lora_B.weight"] = torch.randn(out, 2)
        write_tensors(tmp_path / "style.safetensors", tensors)
        return tmp_path / "style.safetensors"

    @pytest.mark.parametrize("target", ["folder", "merged.safetensors"])
    @pytest.mark.parametrize("source", ["folder", "file"])
    def test_it_is_added_for_good(self, pipe, folder, file, lora, tmp_path, source, target):
        adapted = Text2ImagePipeline(**pipe.components)
        adapted.load_lora(lora, scale=0.5)
        given = (folder, {}) if source == "folder" else (file, {"tokenizer": file.parent / "tokenizer"})
        convert(given[0], tmp_path / target, family="sd-v1", loras=[(lora, 0.5)], **given[1])
        if target == "folder":
            merged = Text2ImagePipeline.from_pretrained(tmp_path / target, device="cpu", dtype="float32")
        else:
            merged = load(Text2ImagePipeline, tmp_path / target, file.parent)
        merged.scheduler = adapted.scheduler
        call = {
            "num_inference_steps": 2,
            "height": 32,
            "width": 32,
            "seed": 3,
            "output_type": "pt",
            "show_progress": False,
        }
        picture = adapted("a cat", **call).images
        assert torch.equal(merged("a cat", **call).images, picture)
        assert not torch.equal(pipe("a cat", **call).images, picture)

    @pytest.mark.parametrize("source", ["folder", "file"])
    def test_it_is_rounded_once(self, pipe, folder, file, lora, tmp_path, source):
        given = {"folder": folder, "file": file}[source]  # and a file needs no tokenizer for this
        convert(given, tmp_path / "exact.safetensors", family="sd-v1", loras=[(lora, 0.5)])
        convert(given, tmp_path / "half.safetensors", family="sd-v1", loras=[(lora, 0.5)], dtype="bf16")
        exact, half = (read_tensors(tmp_path / f"{name}.safetensors") for name in ("exact", "half"))
        assert exact.keys() == half.keys() == read_tensors(file).keys()
        assert all(torch.equal(half[name], tensor.bfloat16()) for name, tensor in exact.items())
        changed = [name for name, tensor in read_tensors(file).items() if not torch.equal(exact[name], tensor)]
        assert len(changed) == 2

    def test_what_takes_none(self, lora, tmp_path):
        write_tensors(tmp_path / "a.safetensors", {"x": torch.ones(1)})
        with pytest.raises(ValueError, match="holds no whole model"):
            convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", loras=[(lora, 1.0)])


class TestDescribe:
    @pytest.mark.parametrize("said", [["a"], {"a": 1}, [{}], 7])
    def test_names_of_no_class(self, folder, tmp_path, said):
        """Whatever stands there, it is told what is wrong."""
        copy = shutil.copytree(folder, tmp_path / "copy")
        for path in (copy / "model_index.json", copy / "unet" / "config.json"):
            content = json.loads(path.read_text())
            path.write_text(json.dumps(content | {"_class_name": said}))
            assert any(str(said) in problem for problem in describe(path.parent).problems)
        path = copy / "text_encoder" / "config.json"
        path.write_text(json.dumps({"architectures": [said]}))
        assert describe(path.parent).problems

    def test_a_component_whose_name_is_too_long(self, folder, tmp_path):
        copy = shutil.copytree(folder, tmp_path / "copy")
        content = json.loads((copy / "model_index.json").read_text())
        (copy / "model_index.json").write_text(json.dumps(content | {"a" * 300: ["diffusers", "AutoencoderKL"]}))
        assert any("lacks the folder aaa" in problem for problem in describe(copy).problems)

    def test_a_single_file(self, file, known):
        found = describe(file)
        assert found.what == "Stable Diffusion 1 (sd-v1), a whole model in one file"
        assert found.use == "Text2ImagePipeline, Img2ImgPipeline or InpaintPipeline"
        assert found.size == file.stat().st_size
        assert [(c.name, c.kind) for c in found.components] == [
            ("unet", "UNet2DConditionModel"), ("vae", "AutoencoderKL"), ("conditioner", "CLIPTextModel")
        ]  # fmt: skip
        assert found.metadata["modelspec.author"] == "a test"
        assert not found.problems

    def test_parameters_and_dtypes(self, file, known, pipe):
        (unet, *_) = describe(file).components
        assert unet.parameters == sum(p.numel() for p in pipe.unet.parameters())
        assert unet.dtypes == {"float32": 4 * unet.parameters}

    def test_no_weights_are_read(self, file, known, monkeypatch):
        from latentgen.weights.regular_file import RegularFile

        read = []
        plain = RegularFile.read_into
        monkeypatch.setattr(
            RegularFile, "read_into", lambda self, buffer, at: read.append(len(buffer)) or plain(self, buffer, at)
        )
        describe(file)
        assert max(read) < file.stat().st_size / 2
        header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
        assert max(read) <= header

    def test_the_checksum(self, file, known):
        import hashlib

        assert describe(file).sha256 is None
        assert describe(file, sha256=True).sha256 == hashlib.sha256(file.read_bytes()).hexdigest()

    def test_a_folder_and_its_parts(self, folder, pipe):
        found = describe(folder)
        assert found.what == "a model folder, StableDiffusionPipeline"
        kinds = {c.name: c.kind for c in found.components}
        assert kinds == {"scheduler": "PNDMScheduler", "text_encoder": "CLIPTextModel", "tokenizer": "CLIPTokenizer",
                         "unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}  # fmt: skip
        assert "safety_checker is not used." in found.notes
        assert not found.problems
        assert describe(folder / "unet").use == "UNet2DConditionModel.from_pretrained"
        assert describe(folder / "text_encoder").components[0].kind == "CLIPTextModel"
        assert describe(folder / "scheduler").what == "a scheduler's settings, PNDMScheduler"

    def test_what_is_wrong_with_a_folder(self, folder, tmp_path):
        broken = shutil.copytree(folder, tmp_path / "broken")
        weights = broken / "vae" / "diffusion_pytorch_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-10])
        (broken / "tokenizer" / "merges.txt").unlink()
        found = describe(broken)
        assert [p for p in found.problems if "cut short" in p]
        assert [p for p in found.problems if "holds no tokenizer" in p]
        assert len(found.problems) == 2

    def test_what_is_wrong_with_a_file(self, file, known, tmp_path):
        (tmp_path / "a.safetensors").write_bytes(file.read_bytes()[:-1])
        assert "cut short" in describe(tmp_path / "a.safetensors").problems[0]
        tensors = read_tensors(file)
        del tensors["first_stage_model.decoder.conv_out.bias"]
        write_tensors(tmp_path / "b.safetensors", tensors)
        (problem,) = describe(tmp_path / "b.safetensors").problems
        assert "decoder.conv_out.bias (3,) is missing" in problem
        write_tensors(tmp_path / "c.safetensors", tensors | {"model.diffusion_model.strange": torch.ones(1)})
        assert "nothing is guessed" in describe(tmp_path / "c.safetensors").problems[0]

    def test_other_files(self, tmp_path, pipe):
        write_tensors(tmp_path / "lora.safetensors", {"lora_unet_a.lora_up.weight": torch.ones(2, 2)})
        assert describe(tmp_path / "lora.safetensors").what == "an adapter (LoRA): UNet"
        for name in ("lora_unet_double_blocks_0_img_attn_proj.lora_up.weight", "lora_te2_x.lora_up.weight", "clip_g"):
            clip = {"clip_l": torch.ones(2, 768)} if name == "clip_g" else {}
            write_tensors(tmp_path / "other.safetensors", {name: torch.ones(2, 2), **clip})
            found = describe(tmp_path / "other.safetensors")
            assert not found.use
            assert found.notes[0].endswith("Nothing here loads it.")
        write_tensors(tmp_path / "cat.safetensors", {"<cat>": torch.ones(3, 768)})
        found = describe(tmp_path / "cat.safetensors")
        assert found.what == "an embedding (textual inversion) for Stable Diffusion 1, vectors: 3"
        assert found.use.startswith("load_textual_inversion")
        pipe.vae.save_single_file(tmp_path / "vae.safetensors")
        found = describe(tmp_path / "vae.safetensors")
        assert found.use == "AutoencoderKL.from_single_file"
        assert isinstance(pipe.vae, AutoencoderKL)
        (tmp_path / "a.ckpt").write_bytes(b"\x80\x02")
        assert "latentgen convert a.ckpt OUT" in describe(tmp_path / "a.ckpt").problems[0]
        with pytest.raises(WeightsError, match="holds no model"):
            describe(tmp_path)
        with pytest.raises(WeightsError, match="does not exist"):
            describe(tmp_path / "absent")
