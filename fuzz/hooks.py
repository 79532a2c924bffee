"""Classes, modules and switches in settings that would have code imported, fetched or run: refused or without effect."""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

from fuzz.outcome import Tally
from fuzz.tiny import HOW, make_model
from fuzz.watched import watching
from latentgen import Text2ImagePipeline
from latentgen.weights.errors import WeightsError

ZEROS = ("imported", "executed", "opened_outside", "untyped", "slow")
EVIL = "evil_module"
MODULES = (
    EVIL,
    "os",
    "subprocess",
    "builtins",
    "latentgen.weights.pickles",
    "torch",
    "transformers.models.auto",
    "diffusers.utils",
    "../evil_module",
    "evil_module.evil",
    "importlib",
    "pickle",
    "transformers_modules.evil",
    "",
    ".",
    None,
    7,
    "latentgen",
)
CLASSES = (
    "Evil",
    "system",
    "Popen",
    "eval",
    "load",
    "AutoModel",
    "Pipeline",
    "__import__",
    "StableDiffusionPipeline",
    "Model",
    "",
    None,
    3,
    "CLIPTextModel",
    "UNet2DConditionModel",
    "evil_module.Evil",
    "FlaxCLIPTextModel",
)
SWITCHES: tuple[dict[str, Any], ...] = (
    {"auto_map": {"AutoModel": f"{EVIL}.Evil", "AutoTokenizer": [f"{EVIL}.Evil", None]}},
    {"trust_remote_code": True},
    {"_attn_implementation": f"stranger/{EVIL}"},
    {"_attn_implementation_internal": EVIL},
    {"attn_implementation": "flash_attention_2"},
    {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
    {"quantization_config": {"quant_method": EVIL, "modules_to_not_convert": [EVIL]}},
    {"_module": EVIL, "_class": "Evil"},
    {"custom_pipeline": f"stranger/{EVIL}"},
    {"custom_revision": "main"},
    {"torch_dtype": f"{EVIL}.Evil"},
    {"dtype": "__import__('os')"},
    {"_name_or_path": f"stranger/{EVIL}"},
    {"hidden_act": f"{EVIL}.act"},
    {"act_fn": EVIL},
    {"processor_class": EVIL},
    {"tokenizer_class": f"{EVIL}.Evil"},
    {"tokenizer_file": f"/tmp/{EVIL}.py"},
    {"name_or_path": EVIL},
    {"backend": EVIL},
    {"model_type": EVIL},
    {"architectures": [EVIL]},
    {"_class_name": EVIL},
    {"_class_name": ["diffusers", EVIL]},
    {"__class__": EVIL},
    {"_diffusers_version": {"a": 1}},
    {"__reduce__": "os.system"},
    {"kernel_config": {EVIL: EVIL}},
    {"hub_kernel": EVIL},
    {"generation_config": EVIL},
    {"chat_template": "{{ ''.__class__ }}"},
    {"special_tokens_map_file": "/etc/passwd"},
)
FILES = (
    "model_index.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/tokenizer.json",
    "tokenizer/special_tokens_map.json",
)


def bent(r: random.Random, content: dict[str, Any], file: str) -> tuple[dict[str, Any], str]:
    """The settings with something in them that names code."""
    changed = dict(content)
    if file == "model_index.json" and r.random() < 0.7:
        component = r.choice([*content, "extra"])
        entry: Any = [r.choice([EVIL, r.choice(MODULES)]), r.choice(["Evil", r.choice(CLASSES)])]
        if r.random() < 0.2:
            entry = r.choice([EVIL, [EVIL], [EVIL, "Evil", "more"], {"a": EVIL}, [[EVIL], "Evil"], True])
        changed[component] = entry
        return changed, f"{component}: {entry}"
    switch = r.choice(SWITCHES)
    return changed | switch, str(switch)


def run(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Load `count` models whose settings name code that lies beside them."""
    r, tally, mark = random.Random(seed), Tally(), folder / "executed"
    model = make_model(folder / "model")
    Text2ImagePipeline.from_pretrained(model, **HOW)  # so that what is imported anyway is there
    known = set(sys.modules)
    for number in range(count):
        copy = shutil.copytree(model, folder / "copy")
        file = r.choice([FILES[0], r.choice(FILES)])
        path = copy / file
        content, what = bent(r, json.loads(path.read_text()), file)
        path.write_text(json.dumps(content))
        for place in (copy, copy / "unet", copy / "text_encoder"):
            (place / f"{EVIL}.py").write_text(f"import os\nos.mkdir({str(mark)!r})\nclass Evil: pass\n")
        sys.path.insert(0, str(copy))
        case = f"{file}, {what}, number {number} of seed {seed}"
        tally.counts["cases"] += 1
        try:
            with watching(copy) as seen:
                try:
                    Text2ImagePipeline.from_pretrained(copy, **HOW)
                    tally.counts["without_effect"] += 1
                except (WeightsError, ValueError):
                    tally.counts["refused"] += 1
                except BaseException as error:
                    tally.blame("untyped", f"{case}: {type(error).__name__} {error}")
        finally:
            sys.path.remove(str(copy))
        new = [
            name
            for name in seen.imports
            if name not in known and not name.startswith(("latentgen.", "torch.", "transformers."))
        ]
        if new:
            tally.blame("imported", f"{case}: {new[:3]}")
        if seen.executed or mark.exists():
            tally.blame("executed", f"{case}: {seen.executed[:2]}")
            shutil.rmtree(mark, ignore_errors=True)
        if seen.opened:
            tally.blame("opened_outside", f"{case}: {seen.opened[:2]}")
        shutil.rmtree(copy)
    return tally.result(*ZEROS)
