import json
import os
import subprocess
import sys
import threading
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from latentgen.weights import WeightsError
from latentgen.weights.hub import commit_of, files_to_fetch, resolve_model

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.6.0",
    "feature_extractor": ["transformers", "CLIPFeatureExtractor"],
    "requires_safety_checker": True,
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": [None, None],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
D = "diffusion_pytorch_model"
SETTINGS = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "vae/config.json",
]
REPOSITORY = [
    *SETTINGS,
    ".gitattributes",
    "README.md",
    "LICENSE.txt",
    "evil.py",
    "v1-5-pruned.ckpt",
    "v1-5-pruned.safetensors",
    "feature_extractor/preprocessor_config.json",
    "safety_checker/config.json",
    "safety_checker/model.safetensors",
    "text_encoder/model.fp16.safetensors",
    "text_encoder/model.safetensors",
    "text_encoder/pytorch_model.bin",
    "text_encoder_2/model.safetensors",
    f"unet/{D}.bin",
    f"unet/{D}.non_ema.safetensors",
    f"unet/{D}.safetensors.index.json",
    f"unet/{D}-00001-of-00002.safetensors",
    f"unet/{D}-00002-of-00002.safetensors",
    f"unet/{D}.fp16-00001-of-00002.safetensors",
    f"unet/{D}.fp16-00002-of-00002.safetensors",
    f"unet/{D}.safetensors.index.fp16.json",
    "unet/modeling.py",
    f"vae/{D}.safetensors",
    "vae_decoder/model.onnx",
    "vae_decoder/config.json",
]
PLAIN = [
    "text_encoder/model.safetensors",
    f"unet/{D}-00001-of-00002.safetensors",
    f"unet/{D}-00002-of-00002.safetensors",
    f"unet/{D}.safetensors.index.json",
    f"vae/{D}.safetensors",
]
FP16 = [
    "text_encoder/model.fp16.safetensors",
    f"unet/{D}.fp16-00001-of-00002.safetensors",
    f"unet/{D}.fp16-00002-of-00002.safetensors",
    f"unet/{D}.safetensors.index.fp16.json",
    f"vae/{D}.safetensors",
]


@pytest.mark.parametrize(("variant", "weights"), [(None, PLAIN), ("fp16", FP16)])
def test_only_what_a_pipeline_reads_is_fetched(variant, weights):
    assert files_to_fetch(REPOSITORY, INDEX, variant, "owner/name") == sorted(SETTINGS + weights)


def test_a_repository_of_one_component():
    names = ["README.md", "config.json", f"{D}.bin", f"{D}.safetensors", "vae-ft-mse.ckpt", "sub/config.json"]
    assert files_to_fetch(names, None, None, "owner/vae") == ["config.json", f"{D}.safetensors"]


def test_one_component_of_a_repository():
    vae = ["vae/config.json", f"vae/{D}.safetensors"]
    assert files_to_fetch(REPOSITORY, None, None, "owner/name", "vae") == vae
    assert files_to_fetch(REPOSITORY, None, "fp16", "owner/name", "vae/") == vae
    with pytest.raises(WeightsError, match=r"owner/name/prior holds no model that can be read: config.json is missing"):
        files_to_fetch(REPOSITORY, None, None, "owner/name", "prior")


def test_a_variant_that_no_component_has():
    with pytest.raises(
        WeightsError, match=r"owner/name has no weights of the variant 'bf16'.*it has 'fp16', 'non_ema'"
    ):
        files_to_fetch(REPOSITORY, INDEX, "bf16", "owner/name")


def test_a_component_with_pickles_only():
    names = ["model_index.json", "unet/config.json", f"unet/{D}.bin"]
    with pytest.raises(WeightsError, match=rf"owner/name/unet has no weights.*{D}\.bin is a pickle"):
        files_to_fetch(names, INDEX, None, "owner/name")


def test_a_repository_without_a_model():
    with pytest.raises(WeightsError, match="owner/data holds no model"):
        files_to_fetch(["README.md", "train.parquet"], None, None, "owner/data")
    with pytest.raises(WeightsError, match="has no weights"):
        files_to_fetch(["v1-5.safetensors"], None, None, "owner/data")


def test_an_existing_folder_is_itself(tmp_path, monkeypatch):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert resolve_model(tmp_path) == tmp_path
    monkeypatch.chdir(tmp_path)
    assert str(resolve_model("owner/name")) == os.path.join("owner", "name")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model("~/owner") == tmp_path / "owner"


@pytest.mark.parametrize(
    "name", ["./model", "../model", "/no/model", "~/model", "~nobody-has-this-name/model", "a/b/c", "a\\b", "."]
)
def test_a_path_that_does_not_exist(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name == ".":
        assert resolve_model(name).is_dir()
        return
    with pytest.raises(WeightsError, match="does not exist: there is no such folder"):
        resolve_model(name)


def test_a_path_object_is_never_a_hub_id(tmp_path, monkeypatch):
    from pathlib import Path

    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match="owner/name does not exist"):
        resolve_model(Path("owner/name"))


def test_a_file(tmp_path):
    (tmp_path / "v1-5.safetensors").touch()
    with pytest.raises(WeightsError, match=r"is a file, .* load a single file with from_single_file\."):
        resolve_model(tmp_path / "v1-5.safetensors")


@pytest.mark.parametrize("name", ["gpt2", "owner/na me", "owner/na--me", "owner/..", "owner/name.git", "own:er/name"])
def test_what_is_neither_path_nor_id(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match="neither a folder that exists nor a Hub id"):
        resolve_model(name, local_files_only=True)


@pytest.mark.parametrize("name", [None, 3, b"model", True])
def test_what_is_no_name(name):
    with pytest.raises(ValueError, match="is not a model: give the path"):
        resolve_model(name)


@pytest.mark.parametrize("option", [{"variant": 16}, {"revision": 5}, {"subfolder": Path("vae")}])
def test_options_that_are_no_texts(option, tmp_path):
    with pytest.raises(ValueError, match=rf"{next(iter(option))}=.* must be a text"):
        resolve_model(tmp_path, **option)


def test_commits_are_those_of_the_hubs_cache(cache):
    assert commit_of(resolve_model("owner/name", cache_dir=cache, local_files_only=True)) == "0123abc"
    assert commit_of(cache) is None


def test_one_component_in_the_cache(cache):
    snapshot = cache / "models--owner--name" / "snapshots" / "0123abc"
    (snapshot / "unet" / "config.json").write_text("{}")
    (snapshot / "model_index.json").unlink()
    assert resolve_model("owner/name", subfolder="unet", cache_dir=cache, local_files_only=True) == snapshot
    with pytest.raises(WeightsError, match=r"owner/name .* is not in the cache"):
        resolve_model("owner/name", subfolder="vae", cache_dir=cache, local_files_only=True)


def test_the_empty_name():
    with pytest.raises(WeightsError, match="No model was named"):
        resolve_model("")


@pytest.fixture
def cache(tmp_path):
    """A cache of the Hub client with one model, as links into blobs/."""
    root = tmp_path / "models--owner--name"
    snapshot = root / "snapshots" / "0123abc"
    (snapshot / "unet").mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("0123abc")
    (root / "blobs").mkdir()
    (root / "blobs" / "b1").write_text(json.dumps(INDEX))
    (snapshot / "model_index.json").symlink_to("../../blobs/b1")
    return tmp_path


@pytest.fixture
def no_network(monkeypatch):
    import socket

    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("switch", ["argument", "environment", "constant"])
def test_without_network_the_cache_is_used(cache, no_network, monkeypatch, switch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", switch == "constant")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1" if switch == "environment" else "0")
    found = resolve_model("owner/name", cache_dir=cache, local_files_only=switch == "argument")
    assert found == cache / "models--owner--name" / "snapshots" / "0123abc"
    assert resolve_model("owner/name", cache_dir=cache, revision="0123abc", local_files_only=True) == found
    with pytest.raises(WeightsError) as caught:
        resolve_model("owner/other", cache_dir=cache, local_files_only=switch == "argument")
    for part in ("owner/other (revision main)", str(cache), "hf download owner/other", "HF_HUB_OFFLINE"):
        assert part in str(caught.value)
    with pytest.raises(WeightsError, match="revision v2"):
        resolve_model("owner/name", cache_dir=cache, revision="v2", local_files_only=switch == "argument")


def test_an_unreachable_hub_falls_back_on_the_cache(cache, monkeypatch):
    import httpx
    from huggingface_hub import HfApi

    def unreachable(self, *args, **kwargs):
        raise httpx.ConnectError("[Errno -2] Name or service not known")

    monkeypatch.setattr(HfApi, "model_info", unreachable)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.warns(UserWarning, match="cannot be reached.*owner/name is read from the cache"):
        assert resolve_model("owner/name", cache_dir=cache).name == "0123abc"
    with pytest.raises(WeightsError, match=r"owner/other.*not in the cache.*cannot be reached \(ConnectError"):
        resolve_model("owner/other", cache_dir=cache)


COMMIT = "0123456789012345678901234567890123456789"


class FakeHub(BaseHTTPRequestHandler):
    """As much of the Hub's protocol as a download needs; counts what is asked for."""

    fetched: list[str]
    token = "hf_secret"

    def do_GET(self, body=True):
        path = self.path.split("?")[0]
        if "/private/" in path and self.headers.get("Authorization") != f"Bearer {self.token}":
            return self.reply(401, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
        if "/gated/" in path and "/resolve/" in path:
            return self.reply(403, b"{}", {"X-Error-Code": "GatedRepo"}, body)
        if "/absent/" in path:
            return self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
        if "/revision/v9" in path:
            return self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
        if "/tree/" in path:
            entries = [self.entry(name) for name in REPOSITORY]
            return self.reply(200, json.dumps(entries).encode(), {}, body)
        if path.startswith("/api/models/"):
            content = {"id": "owner/name", "sha": COMMIT, "siblings": [{"rfilename": name} for name in REPOSITORY]}
            return self.reply(200, json.dumps(content).encode(), {}, body)
        name = path.split(f"/resolve/{COMMIT}/")[-1].split("/resolve/main/")[-1]
        if body:
            self.fetched.append(name)
        data = self.data(name)
        return self.reply(200, data, {"ETag": f'"{sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}, body)

    def do_HEAD(self):
        self.do_GET(body=False)

    @staticmethod
    def data(name):
        return json.dumps(INDEX).encode() if name == "model_index.json" else f"content of {name}".encode()

    def entry(self, name):
        data = self.data(name)
        return {"type": "file", "path": name, "size": len(data), "oid": sha1(data).hexdigest()}

    def reply(self, status, data, headers, body):
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub():
    """The address of a Hub on this machine, and the list of files that were fetched from it."""
    handler = type("Handler", (FakeHub,), {"fetched": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler.fetched
    server.shutdown()
    server.server_close()
    thread.join()


def ask(hub, home, *calls):
    """`resolve_model` in a process of its own, as the Hub client reads its address when it is imported.

    Returns, for each call's arguments, the folder or the error's class and message.
    """
    lines = ["from latentgen.weights.hub import resolve_model"]
    for call in calls:
        lines += [f"try: print(resolve_model({call}))", "except Exception as error: print(repr(error))"]
    foreign = ("HF_", "HUGGING", "TRANSFORMERS", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    env = {name: value for name, value in os.environ.items() if not name.upper().startswith(foreign)}
    env |= {"HF_ENDPOINT": hub, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], env=env, capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout.splitlines()


def test_download_then_use_without_the_hub(hub, tmp_path):
    address, fetched = hub
    (folder,) = ask(address, tmp_path, "'owner/name', variant='fp16'")
    files = sorted(os.path.relpath(os.path.join(d, f), folder) for d, _, names in os.walk(folder) for f in names)
    assert files == sorted(SETTINGS + FP16) == sorted(fetched)
    assert ask("http://127.0.0.1:9", tmp_path, "'owner/name', local_files_only=True", "'owner/name'") == [folder] * 2
    assert ask(address, tmp_path, "'owner/name'") == [folder]
    assert sorted(fetched) == sorted({*SETTINGS, *FP16, *PLAIN}), "only what was not there yet is fetched"


def test_download_of_one_component(hub, tmp_path):
    address, fetched = hub
    (folder,) = ask(address, tmp_path, "'owner/name', subfolder='vae'")
    assert sorted(fetched) == ["vae/config.json", f"vae/{D}.safetensors"]
    assert sorted(os.listdir(os.path.join(folder, "vae"))) == ["config.json", f"{D}.safetensors"]
    assert ask("http://127.0.0.1:9", tmp_path, "'owner/name', subfolder='vae', local_files_only=True") == [folder]


def test_refusals_of_the_hub_and_a_token(hub, tmp_path):
    expected = {
        "'absent/name'": "absent/name is not on the Hub, or it is private",
        "'private/name'": "private/name is not on the Hub, or it is private",
        "'gated/name'": "gated/name is gated: accept its terms",
        "'owner/name', revision='v9'": "owner/name has no revision 'v9'",
        f"'private/name', token={FakeHub.token!r}": COMMIT,
    }
    answers = ask(hub[0], tmp_path, *expected)
    for answer, part in zip(answers, expected.values(), strict=True):
        assert part in answer
        assert answer.startswith("WeightsError") == (part != COMMIT)
        assert FakeHub.token not in answer
