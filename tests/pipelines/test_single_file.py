"""Whole models in one file: every family at tiny width, there and back; and what is refused."""

import warnings

import diffusers
import pytest
import torch
from tiny_clip import make_encoder, make_tokenizer_folder
from tiny_sd import SCHEDULER, make_model_folder, scatter

import latentgen.pipelines as pipelines
from latentgen import AutoencoderKL, LayoutTokenizer, UNet2DConditionModel, UNet2DModel, VQModel
from latentgen.models import ClassEmbedder, LDMBertModel, SpatialRescaler
from latentgen.pipelines import Img2ImgPipeline, InpaintPipeline, SuperResPipeline, Text2ImagePipeline
from latentgen.schedulers import SCHEDULERS
from latentgen.weights import WeightsError
from latentgen.weights.compvis.families import FAMILIES
from latentgen.weights.compvis.single_file import averaged_name
from latentgen.weights.safetensors_io import read_header, read_tensors, write_tensors

TEXT = {
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}
PLAIN = {"down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"]}
RESIDUAL = {
    "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "ResnetUpsampleBlock2D"],
    "downsample_type": "resnet",
    "upsample_type": "resnet",
}
BERT = {"vocab_size": 130, "max_position_embeddings": 77, "d_model": 64, "encoder_layers": 2, "encoder_ffn_dim": 96,
        "encoder_attention_heads": 1, "head_dim": 64}  # fmt: skip


def vae(kind, levels, channels):
    cls = VQModel if kind == "vq" else AutoencoderKL
    words = {
        "block_out_channels": [32] * levels,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": 1,
        "latent_channels": channels,
    }
    return scatter(
        cls.from_config(words | ({"num_vq_embeddings": 20, "vq_embed_dim": channels} if kind == "vq" else {}))
    )


def unet(family, cls, takes, gives, **words):
    facts = FAMILIES[family]
    widths = [64, 128]
    heads = [w // facts.head_channels if facts.head_channels else facts.heads for w in widths]
    if cls is UNet2DModel:
        heads = [w // h for w, h in zip(widths, heads, strict=True)]
    return scatter(cls.from_config({
        "in_channels": takes, "out_channels": gives, "block_out_channels": widths, "layers_per_block": 1,
        "attention_head_dim": heads, "sample_size": facts.sample_size, **words}))  # fmt: skip


def scaled(model, value):
    object.__setattr__(model.config, "scaling_factor", value)
    return model


def clip(act, width):
    heads = width // 64
    return scatter(make_encoder(hidden_size=width, num_attention_heads=heads, intermediate_size=64, hidden_act=act))


def bert_tokenizer(folder):
    from latentgen.text import load_bert_tokenizer

    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij"]
    (folder / "vocab.txt").write_text("\n".join(words))
    return load_bert_tokenizer(folder)


def components(family, tmp_path):
    """A tiny model of a family, as the parts of its pipeline."""
    facts = FAMILIES[family]
    kind, factor = facts.looks.autoencoder.split("-f")
    channels = 4 if "sd" in family or family in ("ldm-txt2img-1p4B-eval", "ldm-cin256", "ldm-lsun_churches256") else 3
    parts = {"scheduler": scheduler(facts)}
    first = scaled(vae(kind, {"4": 3, "8": 4}[factor], channels), facts.scale)
    parts["vqvae" if facts.folder_class == "LDMPipeline" else "vae"] = first
    takes = {"InpaintPipeline": 2 * channels + 1}.get(facts.folder_class, channels)
    if "Inpaint" in facts.folder_class:
        takes = 2 * channels + 1
    elif facts.folder_class in (
        "StableDiffusionUpscalePipeline",
        "LDMSuperResolutionPipeline",
        "Semantic2ImagePipeline",
    ):
        takes = channels + 3
    if facts.looks.context:
        extra = {"use_linear_projection": facts.looks.conditioner == "open clip", **TEXT}
        if family == "sd-x4-upscaler":
            extra |= {"num_class_embeds": 1000, "only_cross_attention": [True, False]}
        if family == "ldm-layout2img-openimages256":
            extra |= {"transformer_layers_per_block": 3}
        width = 48 if facts.looks.conditioner == "classes" else 192 if family == "sd-x4-upscaler" else 64
        parts["unet"] = unet(family, UNet2DConditionModel, takes, channels, cross_attention_dim=width, **extra)
    else:
        extra = dict(RESIDUAL if family in ("ldm-inpainting_big", "ldm-lsun_churches256") else PLAIN)
        extra |= {"resnet_time_scale_shift": "scale_shift"} if family == "ldm-lsun_churches256" else {}
        parts["unet"] = unet(family, UNet2DModel, takes, channels, **extra)
    match facts.looks.conditioner:
        case "clip" | "open clip" as which:
            parts["text_encoder"] = clip("quick_gelu" if which == "clip" else "gelu", width)
            make_tokenizer_folder(tmp_path / "clip")
            from latentgen.text import load_clip_tokenizer

            parts["tokenizer"] = load_clip_tokenizer(tmp_path / "clip")
        case "bert" if "layout" in family:
            parts["layout_encoder"] = scatter(LDMBertModel.from_config({**BERT, "max_position_embeddings": 14}))
            parts["layout_tokenizer"] = LayoutTokenizer(("cat", "dog"), tokens=128, objects=4)
        case "bert":
            parts["text_encoder"] = scatter(LDMBertModel.from_config(BERT))
            parts["tokenizer"] = bert_tokenizer(tmp_path / "bert")
        case "classes":
            parts["class_embedder"] = scatter(ClassEmbedder.from_config({"num_classes": 7, "embed_dim": 48}))
        case "map":
            parts["label_rescaler"] = scatter(
                SpatialRescaler.from_config({"n_stages": 2, "in_channels": 5, "out_channels": 3})
            )
    if family == "sd-x4-upscaler":
        parts["low_res_scheduler"] = SCHEDULERS["DDPMScheduler"].from_config(
            {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "scaled_linear", "clip_sample": True}
        )
    return parts


def scheduler(facts):
    config = facts.scheduler_config(facts.prediction, zero_snr=False)
    return SCHEDULERS[config.pop("_class_name")].from_config(config)


PIPELINE = {
    "StableDiffusionPipeline": "Text2ImagePipeline",
    "StableDiffusionInpaintPipeline": "InpaintPipeline",
    "StableDiffusionUpscalePipeline": "SuperResPipeline",
    "LDMTextToImagePipeline": "Text2ImagePipeline",
    "LDMSuperResolutionPipeline": "SuperResPipeline",
    "LDMInpaintPipeline": "InpaintPipeline",
    "LDMPipeline": "UnconditionalPipeline",
}


def pipeline_of(family):
    name = FAMILIES[family].folder_class
    return getattr(pipelines, PIPELINE.get(name, name))


def same_networks(a, b):
    for name, component in a.components.items():
        other = b.components[name]
        if isinstance(component, torch.nn.Module):
            assert type(component) is type(other)
            theirs = other.state_dict()
            assert all(torch.equal(tensor, theirs[key]) for key, tensor in component.state_dict().items()), name
            assert len(theirs) == len(component.state_dict())
        elif "scheduler" in name:
            assert component == other


def given_for(parts):
    names = {"tokenizer", "layout_tokenizer"} & parts.keys()
    return {name: parts[name] for name in names}


@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back(family, tmp_path):
    """A pipeline's parts are written, and read again: networks bit for bit, scheduler and scale as they were."""
    torch.manual_seed(0)
    parts = components(family, tmp_path)
    pipe = pipeline_of(family)(**parts)
    path = tmp_path / "model.safetensors"
    pipe.save_single_file(path, family=family)
    again = pipeline_of(family).from_single_file(path, family=family, device="cpu", dtype="float32", **given_for(parts))
    same_networks(pipe, again)
    first, second = (p.components.get("vae", p.components.get("vqvae")).config for p in (pipe, again))
    assert first.scaling_factor == second.scaling_factor
    said = read_header(path).metadata
    assert said["modelspec.prediction_type"] == {"epsilon": "epsilon", "v_prediction": "v"}[FAMILIES[family].prediction]
    assert said["modelspec.architecture"] == FAMILIES[family].architecture
    if family.startswith("sd-v2"):  # the file says what was asked for without it
        assert again.scheduler.prediction_type == FAMILIES[family].prediction


SD1_UNET = {"block_out_channels": (32, 64), "norm_num_groups": 32, "attention_head_dim": 8, "layers_per_block": 2,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 64}  # fmt: skip
F8 = {"block_out_channels": (32,) * 4, "norm_num_groups": 32, "down_block_types": ("DownEncoderBlock2D",) * 4,
      "up_block_types": ("UpDecoderBlock2D",) * 4}  # fmt: skip
ENCODER = {"hidden_size": 64, "num_attention_heads": 1, "intermediate_size": 64}
CALL = {"num_inference_steps": 3, "height": 32, "width": 32, "seed": 3, "output_type": "pt"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_model_folder(tmp_path_factory.mktemp("sd1") / "model", unet=SD1_UNET, vae=F8, encoder=ENCODER)


@pytest.fixture(scope="module")
def pipe(folder):
    pipe = Text2ImagePipeline.from_pretrained(folder, device="cpu", dtype="float32")
    pipe.show_progress = False
    return pipe


@pytest.fixture(scope="module")
def file(folder, pipe, tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "model.safetensors"
    pipe.save_single_file(path, family="sd-v1", metadata={"made_by": "a test"})
    return path


def load(cls, path, folder, **words):
    return cls.from_single_file(
        path, **{"family": "sd-v1", "tokenizer": folder / "tokenizer", "device": "cpu", "dtype": "float32", **words}
    )


@pytest.mark.parametrize("cls", [Text2ImagePipeline, Img2ImgPipeline, InpaintPipeline])
def test_every_pipeline_of_the_family_loads_it(cls, file, folder, pipe):
    same_networks(pipe, load(cls, file, folder))


def test_the_picture_is_the_folders(file, folder, pipe):
    again = load(Text2ImagePipeline, file, folder, scheduler=pipe.scheduler)
    again.show_progress = False
    assert torch.equal(again("a cat", **CALL).images, pipe("a cat", **CALL).images)


def test_diffusers_reads_what_is_written(file, folder, pipe):
    """Its loader of single files, on ours: the same weights under the same names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unet = diffusers.UNet2DConditionModel.from_single_file(str(file), config=str(folder), subfolder="unet")
        vae = diffusers.AutoencoderKL.from_single_file(str(file), config=str(folder), subfolder="vae")
    for ours, theirs in ((pipe.unet, unet), (pipe.vae, vae)):
        state = theirs.state_dict()
        assert state.keys() == ours.state_dict().keys()
        assert all(torch.equal(tensor, state[name]) for name, tensor in ours.state_dict().items())


def test_metadata_is_written(file):
    assert read_header(file).metadata["made_by"] == "a test"
    assert read_header(file).metadata["modelspec.title"] == "model"


@pytest.fixture
def averaged(file, tmp_path):
    """A training's checkpoint: the moving average beside the weights, and tables of the schedule."""
    tensors = read_tensors(file)
    trained = {n: t for n, t in tensors.items() if n.startswith("model.diffusion_model.")}
    average = {f"model_ema.{averaged_name(n.split('.', 2)[2])}": t * 2 for n, t in trained.items()}
    extra = {"betas": torch.ones(5), "model_ema.decay": torch.tensor(0.5), "model_ema.num_updates": torch.tensor(3),
             "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77).half()[None]}  # fmt: skip
    write_tensors(tmp_path / "averaged.safetensors", tensors | average | extra)
    return tmp_path / "averaged.safetensors"


@pytest.mark.parametrize(("weights", "factor"), [(None, 2), ("ema", 2), ("train", 1)])
def test_the_moving_average_is_taken_unless_the_other_is_asked_for(averaged, folder, pipe, weights, factor):
    again = load(Text2ImagePipeline, averaged, folder, weights=weights)
    assert torch.equal(again.unet.conv_in.weight, pipe.unet.conv_in.weight * factor)
    same = {**pipe.components, "unet": again.unet}
    same_networks(Text2ImagePipeline(**same), again)


def test_no_average_where_it_is_asked_for(file, folder):
    with pytest.raises(WeightsError, match="holds no moving average"):
        load(Text2ImagePipeline, file, folder, weights="ema")
    with pytest.raises(ValueError, match="weights='both' must be"):
        load(Text2ImagePipeline, file, folder, weights="both")


def test_an_average_that_lacks_a_tensor(averaged, folder):
    tensors = read_tensors(averaged)
    del tensors["model_ema.diffusion_modelout2bias"]
    write_tensors(averaged, tensors)
    with pytest.raises(WeightsError, match=r"moving average lacks 1 tensors \(out\.2\.bias\): pass weights='train'"):
        load(Text2ImagePipeline, averaged, folder)


def changed(file, target, change):
    tensors = read_tensors(file)
    change(tensors)
    write_tensors(target, tensors)
    return target


def test_a_tensor_that_is_of_no_component(file, folder, tmp_path):
    path = changed(
        file, tmp_path / "a.safetensors", lambda t: t.update({"model.diffusion_model.extra.weight": torch.ones(2)})
    )
    with pytest.raises(
        WeightsError, match=r"a\.safetensors: it has 1 tensors that are of no component: model\.diff.*extra"
    ):
        load(Text2ImagePipeline, path, folder)
    path = changed(file, tmp_path / "b.safetensors", lambda t: t.update({"strange": torch.ones(2)}))
    with pytest.raises(WeightsError, match="nothing is guessed"):
        load(Text2ImagePipeline, path, folder)


LEFTOVERS = [
    "model_ema.decay", "model_ema.num_updates", "cond_stage_model.logit_scale", "cond_stage_model.text_projection",
    "cond_stage_model.transformer.text_projection.weight", "cond_stage_model.transformer.logit_scale",
    "cond_stage_model.transformer.embeddings.position_ids", "cond_stage_model.transformer.text_model.embeddings.position_ids",
    "embedding_manager.embedder.transformer.text_model.embeddings.position_ids", "denoiser.sigmas", "global_step", "betas",
]  # fmt: skip


def test_what_other_programs_leave_in_a_file_is_dropped_by_name(file, folder, pipe, tmp_path):
    path = changed(file, tmp_path / "a.safetensors", lambda t: t.update({n: torch.ones(2) for n in LEFTOVERS}))
    same_networks(pipe, load(Text2ImagePipeline, path, folder))
    with pytest.raises(WeightsError, match="holds no moving average"):
        load(Text2ImagePipeline, path, folder, weights="ema")


def test_what_they_leave_in_a_file_of_stable_diffusion_2(two, tmp_path):
    name = "cond_stage_model.model.transformer.text_model.embeddings.position_ids"
    write_tensors(tmp_path / "a.safetensors", two[1] | {name: torch.ones(1, 77)})
    words = {"family": "sd-v2-base", "tokenizer": two[2]["tokenizer"], "device": "cpu", "dtype": "float32"}
    again = Text2ImagePipeline.from_single_file(tmp_path / "a.safetensors", **words)
    same_networks(Text2ImagePipeline(**two[2]), again)


def test_an_autoencoders_attention_under_later_names(file, folder, pipe, tmp_path):
    """As written by programs that converted folders and did not know that diffusers had renamed it."""
    later = {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}

    def rename(tensors):
        for name in [*tensors]:
            for first, other in later.items():
                if name.startswith("first_stage_model.") and f".attn_1.{first}." in name:
                    tensors[name.replace(f".attn_1.{first}.", f".attn_1.{other}.")] = tensors.pop(name)

    path = changed(file, tmp_path / "a.safetensors", rename)
    assert sum("attn_1.to_out.0." in name for name in read_tensors(path)) == 4
    same_networks(pipe, load(Text2ImagePipeline, path, folder))


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("sd-x4-upscaler", "its UNet takes 4 channels, and theirs 7"),
        ("sd-v1-inpainting", "its UNet takes 4 channels, and theirs 9"),
    ],
)
def test_a_family_that_the_file_is_not_of(file, folder, family, why):
    with pytest.raises(WeightsError, match=f"it is not of the family {family}: {why}"):
        load(Text2ImagePipeline, file, folder, family=family)


@pytest.mark.parametrize("name", ["model.diffusion_model.out.2.bias", "first_stage_model.decoder.conv_out.bias",
                                  "cond_stage_model.transformer.text_model.final_layer_norm.bias"])  # fmt: skip
def test_a_missing_tensor_is_named(file, folder, tmp_path, name):
    path = changed(file, tmp_path / "a.safetensors", lambda t: t.pop(name))
    with pytest.raises(WeightsError, match=r"a\.safetensors does not fit what sd-v1 looks like.*bias .* is missing"):
        load(Text2ImagePipeline, path, folder)


def test_a_widths_own_file_is_not_guessed(file, folder):
    with pytest.raises(
        WeightsError, match=r"no known family: it looks like a UNet of 4 input.*nearest is sd-v1.*family="
    ):
        load(Text2ImagePipeline, file, folder, family=None)
    with pytest.raises(ValueError, match="family='sd-v9' is unknown"):
        load(Text2ImagePipeline, file, folder, family="sd-v9")


def test_a_file_without_an_autoencoder_takes_one(file, folder, pipe, tmp_path):
    path = changed(
        file, tmp_path / "a.safetensors", lambda t: [t.pop(n) for n in [*t] if n.startswith("first_stage_model")]
    )
    with pytest.raises(WeightsError, match=r"it has no vae\. Pass vae="):
        load(Text2ImagePipeline, path, folder)
    same_networks(pipe, load(Text2ImagePipeline, path, folder, vae=pipe.vae))


def test_the_other_pipeline_is_named(file, folder):
    with pytest.raises(
        WeightsError, match=r"is Stable Diffusion 1 \(sd-v1\), which SuperResPipeline cannot load: use Text2Im"
    ):
        load(SuperResPipeline, file, folder)


def test_a_tokenizer_beside_the_file_is_found(file, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("latentgen.text.local_tokenizers.cached_folder", lambda *where: None)
    with pytest.raises(
        WeightsError, match=r"holds no tokenizer, and none was found.*Pass tokenizer=FOLDER.*hf download"
    ):
        load(Text2ImagePipeline, file, folder, tokenizer=None)
    monkeypatch.setattr(
        "latentgen.text.local_tokenizers.cached_folder",
        lambda name, which: folder / "tokenizer" if "v1-4" in name else None,
    )
    assert load(Text2ImagePipeline, file, folder, tokenizer=None).tokenizer.pad_token == "<|endoftext|>"
    make_tokenizer_folder(tmp_path / "tokenizer")
    (tmp_path / "model.safetensors").symlink_to(file)
    load(Text2ImagePipeline, tmp_path / "model.safetensors", folder, tokenizer=None)


def test_stable_diffusion_2_is_padded_with_an_exclamation_mark(folder, tmp_path):
    from latentgen.text import find_tokenizer

    assert find_tokenizer("open clip", folder / "tokenizer", tmp_path / "x").pad_token == "!"
    assert find_tokenizer("clip", folder / "tokenizer", tmp_path / "x").pad_token == "<|endoftext|>"


def test_the_other_models_tokenizer_is_padded_as_this_model_was_trained(tmp_path):
    from latentgen.text import find_tokenizer

    make_tokenizer_folder(tmp_path / "two", pad="!")
    assert find_tokenizer("clip", tmp_path / "two", tmp_path / "x").pad_token == "<|endoftext|>"


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A file of Stable Diffusion 2's form: its path, its tensors and the parts it was made of."""
    folder = tmp_path_factory.mktemp("two")
    torch.manual_seed(0)
    parts = components("sd-v2-base", folder)
    Text2ImagePipeline(**parts).save_single_file(folder / "m.safetensors", family="sd-v2-base")
    return folder / "m.safetensors", read_tensors(folder / "m.safetensors"), parts


class TestPrediction:
    """Stable Diffusion 2's files are alike: what the UNet predicts must be said."""

    @pytest.fixture
    def told(self, two, monkeypatch):
        """Recognised by its true widths, which are not Stable Diffusion's here."""
        from dataclasses import replace

        from latentgen.weights.compvis import families
        from latentgen.weights.compvis.recognise import grouped, look
        from latentgen.weights.stored import StoredTensor

        looks = look(grouped({n: StoredTensor.of(t) for n, t in two[1].items()}))
        tiny = {n: replace(f, looks=looks) for n, f in families.FAMILIES.items() if n in ("sd-v2-base", "sd-v2-768-v")}
        for name, family in tiny.items():
            monkeypatch.setitem(families.FAMILIES, name, family)
        return two

    def read(self, told, path, **words):
        tokenizer = {"tokenizer": told[2]["tokenizer"]}
        return Text2ImagePipeline.from_single_file(path, device="cpu", dtype="float32", **tokenizer, **words)

    def test_it_is_asked_for(self, told, tmp_path):
        write_tensors(tmp_path / "bare.safetensors", told[1])
        with pytest.raises(
            WeightsError, match=r"does not say what its UNet predicts: pass prediction_type='epsilon' for"
        ):
            self.read(told, tmp_path / "bare.safetensors")
        pipe = self.read(told, tmp_path / "bare.safetensors", prediction_type="v_prediction")
        assert pipe.scheduler.prediction_type == "v_prediction"
        assert pipe.unet.config.sample_size == 96
        assert pipe.unet.config.upcast_attention  # that model overflows in float16
        assert self.read(told, tmp_path / "bare.safetensors", prediction_type="epsilon").unet.config.sample_size == 64

    @pytest.mark.parametrize(("said", "expected"), [("v", "v_prediction"), ("epsilon", "epsilon")])
    def test_metadata_says_it(self, told, tmp_path, said, expected):
        write_tensors(tmp_path / "m.safetensors", told[1], {"modelspec.prediction_type": said})
        assert self.read(told, tmp_path / "m.safetensors").scheduler.prediction_type == expected

    @pytest.mark.parametrize(
        ("key", "said", "expected"),
        [
            ("modelspec.predict_key", "v", "v_prediction"),
            ("modelspec.predict_key", "epsilon", "epsilon"),
            ("modelspec.architecture", "stable-diffusion-v2-768-v", "v_prediction"),
            ("modelspec.architecture", "stable-diffusion-v2-512", "epsilon"),
            ("ss_v_parameterization", "True", "v_prediction"),
        ],
    )
    def test_other_programs_say_it_otherwise(self, told, tmp_path, key, said, expected):
        write_tensors(tmp_path / "m.safetensors", told[1], {key: said})
        assert self.read(told, tmp_path / "m.safetensors").scheduler.prediction_type == expected

    def test_no_signal_at_the_end_needs_v(self, told, tmp_path):
        write_tensors(tmp_path / "m.safetensors", told[1] | {"ztsnr": torch.zeros(0)})
        scheduler = self.read(told, tmp_path / "m.safetensors").scheduler
        assert (scheduler.prediction_type, scheduler.rescale_betas_zero_snr) == ("v_prediction", True)

    def test_it_may_be_called_v(self, told, tmp_path):
        write_tensors(tmp_path / "m.safetensors", told[1])
        assert (
            self.read(told, tmp_path / "m.safetensors", prediction_type="v").scheduler.prediction_type == "v_prediction"
        )

    def test_marks_say_it(self, told, tmp_path):
        marks = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
        write_tensors(tmp_path / "m.safetensors", told[1] | marks)
        scheduler = self.read(told, tmp_path / "m.safetensors").scheduler
        assert scheduler.prediction_type == "v_prediction"
        assert scheduler.rescale_betas_zero_snr
        assert scheduler.timestep_spacing == "trailing"

    def test_what_is_no_prediction(self, told):
        with pytest.raises(ValueError, match="prediction_type='x' must be"):
            self.read(told, told[0], prediction_type="x")


def test_a_v_model_of_the_first_kind_keeps_its_mark(pipe, folder, tmp_path):
    other = SCHEDULERS["DDIMScheduler"].from_config({**SCHEDULER, "prediction_type": "v_prediction"})
    model = Text2ImagePipeline(**{**pipe.components, "scheduler": other})
    model.save_single_file(tmp_path / "v.safetensors", family="sd-v1")
    again = load(Text2ImagePipeline, tmp_path / "v.safetensors", folder)
    assert again.scheduler.prediction_type == "v_prediction"
    assert "v_pred" in read_header(tmp_path / "v.safetensors").entries


def test_a_model_that_was_trained_to_predict_the_noise_after_all_has_no_mark_of_v(two, tmp_path):
    other = SCHEDULERS["DDIMScheduler"].from_config({**SCHEDULER, "prediction_type": "epsilon"})
    model = Text2ImagePipeline(**{**two[2], "scheduler": other})
    model.save_single_file(tmp_path / "e.safetensors", family="sd-v2-768-v")
    assert "v_pred" not in read_header(tmp_path / "e.safetensors").entries
    assert read_header(tmp_path / "e.safetensors").metadata["modelspec.prediction_type"] == "epsilon"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta_end": 0.02}, "the noise schedule"),
        ({"num_train_timesteps": 500}, "the noise schedule"),
    ],
)
def test_what_a_file_cannot_say_is_not_written(pipe, tmp_path, change, message):
    other = SCHEDULERS["DDIMScheduler"].from_config({**SCHEDULER, **change})
    model = Text2ImagePipeline(**{**pipe.components, "scheduler": other})
    with pytest.raises(ValueError, match=rf"differs in .*{message}.*save_pretrained"):
        model.save_single_file(tmp_path / "a.safetensors", family="sd-v1")
    assert not (tmp_path / "a.safetensors").exists()


def test_attention_in_float32_is_not_lost_on_the_way(pipe, tmp_path):
    unet = UNet2DConditionModel.from_config({**SD1_UNET, "upcast_attention": True})
    model = Text2ImagePipeline(**{**pipe.components, "unet": unet})
    with pytest.raises(ValueError, match="differs in upcast_attention=True"):
        model.save_single_file(tmp_path / "a.safetensors", family="sd-v1")


def test_another_scale_is_kept(pipe, folder, tmp_path):
    torch.manual_seed(0)
    model = Text2ImagePipeline(**{**pipe.components, "vae": scaled(vae("kl", 4, 4), 0.5)})
    model.save_single_file(tmp_path / "a.safetensors", family="sd-v1")
    assert load(Text2ImagePipeline, tmp_path / "a.safetensors", folder).vae.config.scaling_factor == 0.5


@pytest.mark.parametrize(
    ("kind", "levels", "scale"), [("kl", 4, 0.18215), ("kl", 3, 1.0), ("vq", 3, 1.0), ("vq", 5, 1.0)]
)
def test_an_autoencoder_alone(tmp_path, kind, levels, scale):
    torch.manual_seed(0)
    model = vae(kind, levels, 4)
    model.save_single_file(tmp_path / "vae.safetensors")
    again = type(model).from_single_file(tmp_path / "vae.safetensors", device="cpu", dtype="float32")
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in model.state_dict().items())
    assert again.config.scaling_factor == scale
    assert type(model).from_single_file(tmp_path / "vae.safetensors", scaling_factor=0.25).config.scaling_factor == 0.25
    other = AutoencoderKL if kind == "vq" else VQModel
    with pytest.raises(WeightsError, match=f"holds a {type(model).__name__}, not a {other.__name__}: use"):
        other.from_single_file(tmp_path / "vae.safetensors")
    tensors = read_tensors(tmp_path / "vae.safetensors") | {"loss.discriminator.main.0.weight": torch.ones(3)}
    write_tensors(tmp_path / "trained.safetensors", {f"first_stage_model.{n}": t for n, t in tensors.items()})
    again = type(model).from_single_file(tmp_path / "trained.safetensors", device="cpu", dtype="float32")
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in model.state_dict().items())


def test_an_autoencoder_of_other_groups_is_not_written(tmp_path):
    model = AutoencoderKL.from_config({"block_out_channels": [32], "norm_num_groups": 16})
    with pytest.raises(ValueError, match=r"does not say norm_num_groups=16.*save_pretrained"):
        model.save_single_file(tmp_path / "vae.safetensors")


def test_the_autoencoder_of_a_whole_model(file, pipe):
    again = AutoencoderKL.from_single_file(file, device="cpu", dtype="float32")
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in pipe.vae.state_dict().items())


OTHERS = {
    "XL": ("conditioner.embedders.0.x", "Stable Diffusion XL"),
    "Flux": ("double_blocks.0.x", "Flux"),
    "LoRA": ("lora_unet_down.lora_up.weight", "load_lora"),
    "PEFT": ("unet.conv_in.lora_A.weight", "load_lora"),
    "embedding": ("emb_params", "load_textual_inversion"),
    "component": ("down_blocks.0.x", "from_pretrained on the folder"),
    "autoencoder": ("encoder.down.0.x", "AutoencoderKL.from_single_file"),
    "unknown": ("something", "first tensors are something"),
}


@pytest.mark.parametrize(("name", "told"), OTHERS.values(), ids=OTHERS)
def test_files_of_other_kinds_are_told(tmp_path, name, told):
    write_tensors(tmp_path / "a.safetensors", {name: torch.ones(1)})
    with pytest.raises(WeightsError, match=rf"a\.safetensors: it holds no UNet of a single-file model\. .*{told}"):
        Text2ImagePipeline.from_single_file(tmp_path / "a.safetensors")
