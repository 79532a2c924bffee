"""What a file is: of which family, or of what other kind. Nothing is guessed."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from latentgen.weights.compvis.conditioners import CONDITIONERS
from latentgen.weights.compvis.families import EPSILON, FAMILIES, Looks, V, likenesses, nearest
from latentgen.weights.compvis.first_stage import first_stage_config, with_first_names
from latentgen.weights.compvis.unet import unet_config
from latentgen.weights.errors import WeightsError
from latentgen.weights.stored import StoredTensor

UNET = "model.diffusion_model."
AVERAGE = "model_ema."
FIRST_STAGE = "first_stage_model."
STAGE = "cond_stage_model."
FIRST_STAGE_MARK = "encoder.conv_in.weight"

SPELLINGS: dict[str | None, str] = {"older clip": "clip"}
"""Kinds of conditioner that are another one, spelt otherwise."""

PREDICTIONS = {"epsilon": EPSILON, "eps": EPSILON, "v": V, "v_prediction": V, "v-prediction": V, "vpred": V}
"""What metadata and users call them."""

SAYS_PREDICTION: dict[str, Mapping[str, str]] = {
    "modelspec.prediction_type": PREDICTIONS,
    "modelspec.predict_key": PREDICTIONS,  # ComfyUI's
    "ss_v_parameterization": {"true": V, "false": EPSILON},  # kohya's
    "modelspec.architecture": {"stable-diffusion-v2-768-v": V, "stable-diffusion-v2-512": EPSILON},
}
"""Metadata that says what a UNet predicts, the surest first, and what its values mean."""

OTHER_FILES = {
    r"conditioner\.embedders\.": "It is a Stable Diffusion XL model, which is not supported.",
    r"(?:model\.diffusion_model\.)?(?:joint_blocks|double_blocks)\.": "It is a Stable Diffusion 3 or Flux model: not supported.",
    r"lora_|.*\.lora_[AB]\.|.*[._]lora\.(?:down|up)\.|.*\.lora_linear_layer\.": (
        "It is an adapter (LoRA): load the model it was made for, then pipe.load_lora(path)."
    ),
    r"emb_params$|<.+>$|clip_[lg]$": (
        "It is an embedding: load the model it was made for, then pipe.load_textual_inversion(path)."
    ),
    r"(?:down_blocks|mid_block|up_blocks)\.|encoder\.down_blocks\.": (
        "It is one component in the folder layout: put its config.json beside it and use from_pretrained on the folder."
    ),
    r"encoder\.down\.\d": "It is an autoencoder alone: load it with AutoencoderKL.from_single_file or VQModel.from_single_file.",
    r"control_model\.": "It is a ControlNet, which is not supported.",
}
"""Beginnings of names that betray another kind of file."""


OTHER_INPUTS = {5: "it is a depth-to-image model", 8: "it is an image-editing (InstructPix2Pix) model"}
"""What a Stable Diffusion of so many input channels is, that is none of the families."""


def what_it_is(names: Collection[str]) -> str:
    """What a file that is no single-file model may be, from its names."""
    for marks, told in OTHER_FILES.items():
        if any(re.match(marks, name) for name in names):
            return told
    return f"Its first tensors are {', '.join(list(names)[:3]) or 'none'}: it is of another kind of model."


def grouped(tensors: Mapping[str, StoredTensor]) -> dict[str, dict[str, StoredTensor]]:
    """The tensors by prefix, their names without it; those that have none of these stand under ""."""
    groups: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in tensors.items():
        prefix = next((prefix for prefix in (UNET, AVERAGE, FIRST_STAGE, STAGE) if name.startswith(prefix)), "")
        groups.setdefault(prefix, {})[name.removeprefix(prefix)] = tensor
    return groups


def shapes_of(tensors: Mapping[str, StoredTensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def agreed(looks: Looks, family: str) -> str:
    """A family that was named for a file: of other widths the file may be, but not of a family that it does not look like.

    Raises:
        WeightsError: if it looks exactly like another family, or its UNet takes other inputs.
    """
    theirs, like = FAMILIES[family].looks, likenesses(looks)
    if like and family not in like:
        raise WeightsError(f"it is not of the family {family}: it looks like {' or '.join(like)}. Leave family= out.")
    if looks.in_channels != theirs.in_channels:
        raise WeightsError(
            f"it is not of the family {family}: its UNet takes {looks.in_channels} channels, and theirs {theirs.in_channels}. "
            "Name another one."
        )
    return family


def look(groups: Mapping[str, Mapping[str, StoredTensor]]) -> Looks:
    _, unet = unet_config(shapes_of(groups[UNET]), heads=1, head_channels=None)
    stage = groups.get(STAGE, {})
    vae = with_first_names(groups[FIRST_STAGE]) if FIRST_STAGE in groups else None
    return Looks(
        in_channels=unet["in_channels"],
        width=unet["block_out_channels"][0],
        context=unet.get("cross_attention_dim"),
        conditioner=SPELLINGS.get(kind_of_conditioner(stage), kind_of_conditioner(stage)),
        autoencoder=None if vae is None else kind_of_first_stage(*first_stage_config(shapes_of(vae))),
    )


def kind_of_conditioner(stage: Collection[str]) -> str | None:
    """The key in `CONDITIONERS` that fits the names, "first stage" for a copy of that, or None."""
    if FIRST_STAGE_MARK in stage:
        return "first stage"
    return next((kind for kind, c in CONDITIONERS.items() if c.prefix + c.mark in stage), None)


def kind_of_first_stage(network: str, config: Mapping[str, Any]) -> str:
    return f"{'vq' if network == 'VQModel' else 'kl'}-f{2 ** (len(config['block_out_channels']) - 1)}"


def recognise(looks: Looks, told: str | None) -> str:
    """The family of a file that looks so, where it is one only."""
    found = likenesses(looks)
    if not found and looks.in_channels in OTHER_INPUTS and looks.width == 320:
        raise WeightsError(
            f"it takes {looks.in_channels} channels: {OTHER_INPUTS[looks.in_channels]}, which is not supported."
        )
    if not found and looks.context == 2048:
        raise WeightsError(
            "it attends to texts of width 2048: it is a Stable Diffusion XL model, which is not supported."
        )
    if not found:
        near = nearest(looks)
        raise WeightsError(
            f"it is of no known family: it looks like {looks}. The nearest is {near} ({FAMILIES[near].looks}). If it is a model "
            "of such a form with other widths, pass family=..., one of "
            f"{', '.join(FAMILIES)}; otherwise it cannot be loaded here."
        )
    if len(found) == 1:
        return found[0]
    fitting = [name for name in found if FAMILIES[name].prediction == told]
    if len(fitting) == 1:
        return fitting[0]
    choices = " or ".join(f"{FAMILIES[name].prediction!r} for {FAMILIES[name].title}" for name in found)
    raise WeightsError(
        f"it may be {' or '.join(FAMILIES[name].title for name in found)}, which have the same tensors, and does not say what "
        f"its UNet predicts: pass prediction_type={choices}. With the wrong one, pictures are noise."
    )


def told_prediction(names: Collection[str], metadata: Mapping[str, str]) -> str | None:
    """What a file says of itself: by metadata (ModelSpec), or by marks that fine-tuned models carry."""
    for key, meanings in SAYS_PREDICTION.items():
        if (meant := meanings.get(metadata.get(key, "").lower())) is not None:
            return meant
    return V if "v_pred" in names or "ztsnr" in names else None
