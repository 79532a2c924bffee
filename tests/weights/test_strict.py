import pytest
import torch
from torch import nn

from latentgen.weights import WeightsError
from latentgen.weights.stored import StoredTensor
from latentgen.weights.strict import fill as fill_stored

CPU = torch.device("cpu")


class Network(nn.Module):
    def __init__(self, channels=4, width=8):
        super().__init__()
        self.conv_in = nn.Conv2d(channels, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.register_buffer("table", torch.arange(5, device="cpu"), persistent=False)
        self.register_buffer("ids", torch.arange(3))


def fill(module, tensors, **where):
    fill_stored(module, {name: StoredTensor.of(tensor) for name, tensor in tensors.items()}, **where)


def on_meta(**settings):
    with torch.device("meta"):
        return Network(**settings)


def test_fill():
    source = Network()
    source.norm.num_batches_tracked += 7
    module = on_meta()
    fill(module, source.state_dict(), dtype=torch.bfloat16, device=CPU, source="unet")
    assert not module.training
    assert not any(p.requires_grad for p in module.parameters())
    assert not any(t.is_meta for t in (*module.parameters(), *module.buffers()))
    assert module.conv_in.weight.dtype == module.norm.running_mean.dtype == torch.bfloat16
    assert torch.equal(module.conv_in.weight, source.conv_in.weight.bfloat16())
    assert module.norm.num_batches_tracked == 7
    assert module.ids.dtype == module.table.dtype == torch.int64


def test_integers_keep_their_dtype_whatever_the_file_has():
    tensors = Network().state_dict()
    tensors["ids"] = tensors["ids"].half()
    module = on_meta()
    fill(module, tensors, dtype=torch.float32, device=CPU, source="unet")
    assert torch.equal(module.ids, torch.arange(3))


def test_nothing_is_copied_where_dtype_and_device_fit():
    tensors = Network().state_dict()
    module = on_meta()
    fill(module, tensors, dtype=torch.float32, device=CPU, source="unet")
    assert module.conv_in.weight.data_ptr() == tensors["conv_in.weight"].data_ptr()


def test_missing_unexpected_and_misshaped_are_all_listed():
    tensors = Network().state_dict()
    del tensors["norm.bias"]
    tensors["extra.weight"] = torch.zeros(2, 3)
    tensors["norm.weight"] = torch.zeros(9)
    module = on_meta()
    with pytest.raises(WeightsError) as caught:
        fill(module, tensors, dtype=torch.float32, device=CPU, source="model/unet")
    message = str(caught.value)
    assert "model/unet does not fit its config.json" in message
    assert "norm.weight is (9,) in the file and (8,) in the model" in message
    assert "norm.bias (8,) is missing in the file" in message
    assert "extra.weight (2, 3) is in the file and not in the model" in message
    assert "fetch both again" in message
    assert module.conv_in.weight.is_meta, "the module is left as it was"
    first = message.splitlines()[0]
    assert "1 of another shape, 1 missing, 1 unexpected" in first
    assert "norm.weight is (9,)" in first
    assert "fetch both again" in first


def test_a_single_finding_is_a_single_line():
    tensors = Network().state_dict()
    del tensors["norm.bias"]
    with pytest.raises(WeightsError) as caught:
        fill(on_meta(), tensors, dtype=torch.float32, device=CPU, source="model/unet")
    assert "\n" not in str(caught.value)
    assert "norm.bias (8,) is missing in the file" in str(caught.value)


def test_long_lists_are_cut():
    tensors = Network().state_dict() | {f"extra.{i:02d}": torch.zeros(1) for i in range(25)}
    with pytest.raises(WeightsError, match=r"extra\.09(.|\n)*and 15 more") as caught:
        fill(on_meta(), tensors, dtype=torch.float32, device=CPU, source="unet")
    assert "extra.10" not in str(caught.value)


@pytest.mark.parametrize(
    ("channels", "kind"), [(9, "inpainting"), (7, "upscaler"), (5, "depth"), (8, "InstructPix2Pix")]
)
def test_hint_for_other_input_channels(channels, kind):
    with pytest.raises(WeightsError, match=rf"{channels} input channels is an? .*{kind}.*\"in_channels\": {channels}"):
        fill(on_meta(), Network(channels).state_dict(), dtype=torch.float32, device=CPU, source="unet")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("model.diffusion_model.out.2.bias", "whole model in one file"),
        ("lora_unet_x.lora_up.weight", "adapter"),
        ("unet.conv_in.lora_A.weight", "adapter"),
    ],
)
def test_hint_for_other_kinds_of_file(name, hint):
    with pytest.raises(WeightsError, match=hint):
        fill(on_meta(), {name: torch.zeros(1)}, dtype=torch.float32, device=CPU, source="unet")


def test_quantised_weights():
    tensors = Network().state_dict()
    tensors["norm.weight"] = torch.zeros(8, dtype=torch.int8)
    with pytest.raises(WeightsError, match=r"norm\.weight is torch\.int8 in the file: quantised"):
        fill(on_meta(), tensors, dtype=torch.float32, device=CPU, source="unet")


def test_a_buffer_that_no_file_holds_must_be_real():
    module = on_meta()
    module.register_buffer("table", torch.empty(5, device="meta"), persistent=False)
    with pytest.raises(RuntimeError, match="table"):
        fill(module, Network().state_dict(), dtype=torch.float32, device=CPU, source="unet")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_named(value):
    tensors = Network().state_dict()
    tensors["conv_in.weight"][2, 1, 0, 1] = value
    module = on_meta()
    with pytest.raises(
        WeightsError, match=r"unet has values that are not finite in 1 tensors \(conv_in\.weight \(8, 4, 3, 3\)"
    ):
        fill(module, tensors, dtype=torch.float32, device=CPU, source="unet")
    assert module.conv_in.weight.is_meta


def test_what_is_too_large_for_half_precision_is_named_with_the_remedy():
    tensors = Network().state_dict()
    tensors["conv_in.bias"][0] = 70_000.0
    with pytest.raises(
        WeightsError, match=r"conv_in\.bias.*torch\.float32 there and may be too large for torch\.float16"
    ):
        fill(on_meta(), tensors, dtype=torch.float16, device=CPU, source="unet")
    fill(on_meta(), tensors, dtype=torch.bfloat16, device=CPU, source="unet")


def test_nothing_but_zeros_is_refused_and_some_zeros_are_not():
    zeros = {name: torch.zeros_like(tensor) for name, tensor in Network().state_dict().items()}
    with pytest.raises(WeightsError, match="nothing but zeros"):
        fill(on_meta(), zeros, dtype=torch.float32, device=CPU, source="unet")
    zeros["norm.weight"][3] = -1e-8
    fill(on_meta(), zeros, dtype=torch.float32, device=CPU, source="unet")


@pytest.mark.cuda
def test_everything_moves_to_the_device():
    module = on_meta()
    fill(module, Network().state_dict(), dtype=torch.float16, device=torch.device("cuda", 0), source="unet")
    assert {t.device for t in (*module.parameters(), *module.buffers())} == {torch.device("cuda", 0)}
