"""What a name means, what a checkpoint says about itself, and what is said where something is missing or broken."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from forethought.backend import load as module
from forethought.backend.hf import Adapter
from forethought.backend.load import load
from forethought.backend.transformer import Transformer


@pytest.fixture
def folder(checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    """A checkpoint to spoil."""
    return Path(shutil.copytree(checkpoint("llama"), tmp_path / "mine"))


def edit(file: Path, **changes: Any) -> None:
    """Set keys of a JSON file; None removes."""
    content = json.loads(file.read_text()) if file.exists() else {}
    content |= changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


# ---- names --------------------------------------------------------------------------------------------------------


def test_built_in_names_win_over_folders(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(folder, tmp_path / "built-in" / "tiny")
    shutil.copytree(folder, tmp_path / "tiny")
    edit(tmp_path / "tiny" / "generation_config.json", max_new_tokens=7)
    monkeypatch.setattr(module, "BUILT_IN", tmp_path / "built-in")
    monkeypatch.chdir(tmp_path)
    assert (load("tiny").info.name, load("tiny").info.defaults.max_tokens) == ("tiny", None)
    for path in ("./tiny", Path("tiny"), str(tmp_path / "tiny"), "../" + tmp_path.name + "/tiny"):
        assert (load(path).info.name, load(path).info.defaults.max_tokens) == ("tiny", 7)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load("~/tiny").info.defaults.max_tokens == 7
    with pytest.raises(ValueError, match=r"'mine' is no built-in model \(tiny\); for a folder write ./mine"):
        load("mine")


def test_a_folder_of_two_names_is_no_hub_id(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent.parent)
    assert load(f"{folder.parent.name}/mine").info.name == "mine"


@pytest.mark.parametrize("name", ["./nothing", "/nothing/here", "~/nothing", "a/b/c", "a/"])
def test_a_path_that_is_not_there(name: str) -> None:
    with pytest.raises(FileNotFoundError, match=name):
        load(name)


def test_a_hub_id_without_a_network() -> None:
    with pytest.raises(FileNotFoundError, match="nobody/nothing: no such folder, and not to be had from the Hugging Face Hub"):
        load("nobody/nothing")


def test_a_hub_id(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[Any] = []

    def snapshot(name: str, **options: Any) -> str:
        asked.append((name, options["allow_patterns"]))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert load("org/name").info.name == "org/name"
    ((name, patterns),) = asked
    assert name == "org/name"
    assert "*.safetensors" in patterns
    assert not any(pattern.endswith((".bin", ".pt", ".py")) for pattern in patterns)


def test_a_file_is_no_checkpoint(folder: Path) -> None:
    with pytest.raises(NotADirectoryError, match="a checkpoint is a folder"):
        load(folder / "config.json")


# ---- what picks the implementation --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "changes", "expected"),
    [
        ("llama", {}, Transformer),
        ("llama-llama3", {}, Transformer),
        ("llama", {"hidden_act": "gelu"}, Adapter),
        ("llama", {"architectures": None}, Adapter),
        ("phi3-longrope", {}, Adapter),
    ],
)
def test_our_own_where_it_knows_the_block(kind: str, changes: Any, expected: type, checkpoint: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint(kind), tmp_path / "mine"))
    edit(folder / "config.json", **changes)
    assert type(load(folder)) is expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "dtype='int8'"),
        ({"dtype": "half a float"}, "dtype='half a float'"),
        ({"dtype": torch.int64}, "dtype=torch.int64"),
        ({"device": "nowhere"}, "nowhere"),
        ({"impl": "magic"}, "magic"),
    ],
)
def test_bad_options(options: Any, message: str, folder: Path) -> None:
    with pytest.raises((ValueError, RuntimeError), match=message):
        load(folder, **options)


# ---- defaults -----------------------------------------------------------------------------------------------------


def test_defaults_of_a_checkpoint(folder: Path) -> None:
    file = folder / "generation_config.json"
    edit(
        file,
        do_sample=True,
        temperature=0.6,
        top_k=20,
        top_p=0.95,
        min_p=0.1,
        repetition_penalty=1.1,
        max_new_tokens=99,
        eos_token_id=[3, 5],
    )
    found = load(folder).info.defaults
    assert (found.temperature, found.top_k, found.top_p, found.min_p) == (0.6, 20, 0.95, 0.1)
    assert (found.repetition_penalty, found.max_tokens, found.stop_ids) == (1.1, 99, (3, 5))
    edit(file, temperature=None, top_k=None)
    assert (load(folder).info.defaults.temperature, load(folder).info.defaults.top_k) == (1.0, None)
    edit(file, do_sample=False, temperature=0.6)
    found = load(folder).info.defaults
    assert (found.temperature, found.top_p, found.repetition_penalty, found.max_tokens) == (None, None, 1.1, 99)


def test_end_of_text_from_wherever_it_is_said(folder: Path) -> None:
    file = folder / "generation_config.json"
    file.unlink(missing_ok=True)
    assert load(folder).info.defaults.stop_ids == ()
    save_tokenizer(folder)
    assert load(folder).info.defaults.stop_ids == (1,)
    edit(folder / "config.json", eos_token_id=4)
    assert load(folder).info.defaults.stop_ids == (4,)
    edit(file, eos_token_id=0)
    assert load(folder).info.defaults.stop_ids == (0,)


def save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "one": 2, "two": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>").save_pretrained(folder)


def test_a_tokenizer_is_optional(folder: Path) -> None:
    assert load(folder).text is None
    save_tokenizer(folder)
    text = load(folder).text
    assert text is not None
    assert text.encode("one two") == [2, 3]
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="mine: its tokenizer cannot be read"):
        load(folder)


# ---- broken checkpoints -------------------------------------------------------------------------------------------


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"mine: no config\.json"):
        load(folder)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("content", ['{"a": ', "[1]", "\xff"])
def test_broken_json(name: str, content: str, folder: Path) -> None:
    (folder / name).write_text(content, encoding="latin-1")
    if "index" in name:
        (folder / "model.safetensors").unlink()  # which would count instead
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        load(folder)


def test_an_index_without_a_map(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    edit(folder / "model.safetensors.index.json", metadata={})
    with pytest.raises(ValueError, match="no weight_map"):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "no-such-thing"}, "no-such-thing"),
        ({"model_type": None}, "config.json"),
        ({"hidden_size": "wide"}, "config.json"),
        ({"hidden_size": 64}, "shape"),
        ({"num_hidden_layers": 3}, r"no tensor layers\.2\."),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
    ],
)
def test_a_config_that_does_not_fit(changes: Any, message: str, folder: Path) -> None:
    edit(folder / "config.json", **changes)
    with pytest.raises(ValueError, match=message):
        load(folder)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("size", [0, 7, 500, 4000])
def test_truncated_weights(kind: str, size: int, checkpoint: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint(kind), tmp_path / "mine"))
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"model\.safetensors: not a readable safetensors file"):
        load(folder)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_missing_weights(kind: str, checkpoint: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(checkpoint(kind), tmp_path / "mine"))
    file = folder / "model.safetensors"
    tensors = load_file(file)
    lost = next(name for name in tensors if ".1." in name)
    save_file({name: t for name, t in tensors.items() if name != lost}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"no tensor {lost.removeprefix('model.')}"):
        load(folder)
    file.rename(folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors; pytorch_model\.bin"):
        load(folder)


def test_a_missing_shard(checkpoint: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint("llama", shards="20KB"), tmp_path / "mine"))
    lost = min(folder.glob("*.safetensors"))
    lost.unlink()
    with pytest.raises(FileNotFoundError, match=lost.name):
        load(folder)


def test_a_head_that_a_checkpoint_lacks_is_not_made_up(checkpoint: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint("phi", headless=True), tmp_path / "mine"))
    with pytest.raises(ValueError, match="a PhiModel, which has no LM head"):
        load(folder)
    edit(folder / "config.json", architectures=None)
    with pytest.raises(ValueError, match="no tensor lm_head"):
        load(folder)
