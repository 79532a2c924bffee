"""Classes, modules and switches in settings that would have code imported, fetched or run: refused or without effect."""

from __future__ import annotations

import json
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from fuzz.outcome import Tally
from fuzz.tiny import HOW, make_model
from fuzz.watched import watching
from latentgen import Text2ImagePipeline

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


STRANGE: tuple[Any, ...] = (EVIL, [EVIL], [EVIL, "Evil", "more"], {"a": EVIL}, [[EVIL], "Evil"], True)
COMPONENTS = ("vae", "text_encoder", "tokenizer", "unet", "scheduler", "safety_checker", "feature_extractor", "extra")


def cases(r: random.Random, count: int) -> list[tuple[str, dict[str, Any]]]:
    """Files and what is put into them, each another: switches in all files, and entries of an index.

    The most name the module that lies there: what is imported already would be taken again without anybody seeing it.
    """
    switches = [(file, switch) for file in FILES for switch in SWITCHES]
    own: list[Any] = [*STRANGE, *([EVIL, name] for name in CLASSES)]
    others = [[module, name] for module in MODULES if module != EVIL for name in CLASSES]
    made = r.sample(switches, min(len(switches), (count + 1) // 2))
    for entries in (own, others):
        index = [(FILES[0], {component: entry}) for component in COMPONENTS for entry in entries]
        left = count - len(made)
        made += r.sample(index, left if entries is others else min(len(index), left * 3 // 4))
    return made


def run(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Load `count` models whose settings name code that lies beside them."""
    r, tally, mark = random.Random(seed), Tally(), folder / "executed"
    model = make_model(folder / "model")
    Text2ImagePipeline.from_pretrained(model, **HOW)  # so that what is imported anyway is there
    with watching(model) as seen:
        Text2ImagePipeline.from_pretrained(model, **HOW)
    usual, known = frozenset(seen.compiled), set(sys.modules)
    for number, (file, change) in enumerate(cases(r, count)):
        copy = shutil.copytree(model, folder / "copy")
        path = copy / file
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        for place in (copy, copy / "unet", copy / "text_encoder"):
            (place / f"{EVIL}.py").write_text(f"import os\nos.mkdir({str(mark)!r})\nclass Evil: pass\n")
        sys.path.insert(0, str(copy))
        case = f"{file}, {change}, number {number} of seed {seed}"
        start = time.perf_counter()
        try:
            with watching(copy, usual) as seen:
                tally.load(case, lambda copy=copy: Text2ImagePipeline.from_pretrained(copy, **HOW))
        finally:
            sys.path.remove(str(copy))
        tally.timed(case, start)
        new = [name for name in seen.imports if name not in known]
        if new:
            tally.blame("imported", f"{case}: {new[:3]}")
        if seen.executed or mark.exists():
            tally.blame("executed", f"{case}: {seen.executed[:2]}")
            shutil.rmtree(mark, ignore_errors=True)
        if seen.opened:
            tally.blame("opened_outside", f"{case}: {seen.opened[:2]}")
        shutil.rmtree(copy)
    return tally.result(*ZEROS)
