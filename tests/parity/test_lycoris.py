"""Every kind of adapter that LyCORIS trains and is read here: its own modules write the files and say what they change."""

import pytest
import tiny_lora as tiny
import torch
from tiny_sd import relative_error
from torch import nn

from latentgen.weights.adapters import read_lora

modules = pytest.importorskip("lycoris.modules")

LAYERS = {
    "linear": (lambda: nn.Linear(48, 80), (2, 48)),
    "conv": (lambda: nn.Conv2d(48, 80, 3, padding=1), (2, 48, 5, 6)),
    "point": (lambda: nn.Conv2d(48, 80, 1), (2, 48, 5, 6)),
    "layer norm": (lambda: nn.LayerNorm(20), (2, 20)),
    "group norm": (lambda: nn.GroupNorm(4, 20), (2, 20, 5, 6)),
}
WEIGHTS = ("linear", "conv", "point")
LOW_RANK = {"lora_dim": 4, "alpha": 1.5}
CASES = [
    *[(cls, layer, LOW_RANK | more) for cls in ("LoConModule", "LohaModule", "LokrModule") for layer in WEIGHTS for more in (
        {}, {"weight_decompose": True, "wd_on_out": True}, {"weight_decompose": True, "wd_on_out": False}, {"rs_lora": True},
        {"use_scalar": True},
    )],
    *[(cls, "conv", LOW_RANK | {"use_tucker": True}) for cls in ("LoConModule", "LohaModule", "LokrModule")],
    *[("LokrModule", layer, LOW_RANK | more) for layer in WEIGHTS for more in (
        {"lora_dim": 2, "decompose_both": True}, {"full_matrix": True}, {"factor": 2}, {"lora_dim": 30},
    )],
    *[("FullModule", layer, {}) for layer in WEIGHTS],
    *[("NormModule", layer, {}) for layer in ("layer norm", "group norm")],
    *[("IA3Module", layer, {"train_on_input": flag}) for layer in WEIGHTS for flag in (False, True)],
]  # fmt: skip


def named(case):
    cls, layer, settings = case
    return "-".join([cls.removesuffix("Module"), layer, *(name for name in settings if settings[name] is not False)])


@pytest.mark.parametrize("case", CASES, ids=named)
@torch.no_grad()
def test_changes_what_lycoris_changes(tmp_path, case):
    kind, layer_kind, settings = case
    torch.manual_seed(0)
    make, shape = LAYERS[layer_kind]
    layer, x = make(), torch.randn(shape)
    for parameter in layer.parameters():
        parameter.copy_(torch.randn_like(parameter))
    plain = {name: parameter.clone() for name, parameter in layer.named_parameters()}
    before = layer(x)
    theirs = getattr(modules, kind)("lora_unet_block_it", layer, 1.0, **settings)
    for parameter in theirs.parameters():
        parameter.add_(0.5 * torch.randn_like(parameter))  # lengths of rows stay near those of the layer's
    theirs.apply_to()
    expected = layer(x)

    shapes = {f"block.it.{name}": tuple(tensor.shape) for name, tensor in plain.items()}
    file = {f"lora_unet_block_it.{name}": tensor for name, tensor in theirs.state_dict().items()}
    lora = read_lora(tiny.write(tmp_path / "one.safetensors", file), unet=shapes, text_encoder={})

    changed = {name.removeprefix("block.it.") for name in lora.unet}
    assert changed == ({"weight", "bias"} if kind in ("FullModule", "NormModule") else {"weight"})
    changes = {name: delta.change(plain[name.removeprefix("block.it.")]) for name, delta in lora.unet.items()}
    ours = make()
    ours.load_state_dict({name: tensor + changes.get(f"block.it.{name}", 0) for name, tensor in plain.items()})
    assert relative_error(expected, before) > 0.01
    assert relative_error(ours(x), expected) < 1e-5
