"""A checkpoint read as transformers reads it, or refused by name: which file counts, whose head, which settings, GGUF, memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from forethought.backend.engine import Engine
from forethought.backend.gguf import LLAMA3
from forethought.backend.hf import Adapter
from forethought.backend.load import architecture, load, parameters, weights_hash
from forethought.backend.model import Model
from forethought.backend.transformer import Transformer
from forethought.decoding.autoregressive import Autoregressive
from forethought.nano import tokenizer as nano_tokenizer

PROMPT = [5, 9, 2, 40, 7]


def edit(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    content |= changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def tensors(file: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return dict(load_file(file))


def save(content: dict[str, torch.Tensor], file: Path) -> None:
    from safetensors.torch import save_file

    save_file(content, file, metadata={"format": "pt"})


def own(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def logits(model: Model, ids: list[int] = PROMPT) -> torch.Tensor:
    from forethought.backend.batch import Row, TokenBatch

    pool = model.new_pool(len(ids))
    return model.forward(TokenBatch(pool, [Row(pool.new_context(), ids)])).logits


def same(model: Model, theirs: Any, ids: list[int] = PROMPT) -> None:
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0, -1:]
    torch.testing.assert_close(logits(model, ids)[-1:], expected, rtol=0, atol=1e-4)


def greedy(model: Model, **options: Any) -> list[int]:
    with Engine(model, Autoregressive()) as engine:
        return engine.generate(PROMPT, **{"max_tokens": 12} | options)[0].token_ids


def generated(theirs: Any) -> list[int]:
    found = theirs.generate(torch.tensor([PROMPT]), max_new_tokens=12, pad_token_id=0)[0, len(PROMPT) :].tolist()
    return list(found)


@pytest.fixture
def copy(checkpoint: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """copy(kind, …) -> a checkpoint to spoil."""
    return lambda kind, **more: Path(shutil.copytree(checkpoint(kind, **more), tmp_path / "mine"))


# ---- weights ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [True, False])
@pytest.mark.parametrize("equal", [True, False])
def test_a_head_in_the_file_wins_over_a_tied_config(config: bool, equal: bool, copy: Any) -> None:
    folder = copy("llama")
    found = tensors(folder / "model.safetensors")
    if equal:
        found["lm_head.weight"] = found["model.embed_tokens.weight"].clone()
    save(found, folder / "model.safetensors")
    edit(folder / "config.json", tie_word_embeddings=config)
    model, size = load(folder, device="cpu"), found["lm_head.weight"].numel()
    same(model, own(folder))
    whole = sum(t.numel() for t in found.values())
    assert model.info.parameters == whole - (size if config and equal else 0)


@pytest.mark.parametrize("kept", ["model.embed_tokens.weight", "lm_head.weight"])
def test_one_of_two_tied_tensors_is_both(kept: str, copy: Any) -> None:
    folder = copy("llama-tied")
    found = tensors(folder / "model.safetensors")
    found[kept] = found.pop("model.embed_tokens.weight")
    save(found, folder / "model.safetensors")
    same(load(folder, device="cpu"), own(folder))


def test_a_whole_file_wins_over_an_index(copy: Any, checkpoint: Any) -> None:
    folder, shards = copy("llama"), checkpoint("llama", shards="20KB", initializer_range=0.5)
    alone = weights_hash(folder)
    for file in shards.glob("model*"):
        shutil.copy(file, folder)
    same(load(folder, device="cpu"), own(folder))
    assert weights_hash(folder) == alone, "files that do not count"
    assert parameters(folder) == load(folder).info.parameters
    (folder / "model.safetensors").unlink()
    same(load(folder, device="cpu"), own(shards))
    assert weights_hash(folder) != alone


def test_a_file_that_the_config_names(copy: Any, checkpoint: Any) -> None:
    folder = copy("llama")
    shutil.copy(checkpoint("llama", initializer_range=0.5) / "model.safetensors", folder / "other.safetensors")
    edit(folder / "config.json", transformers_weights="other.safetensors")
    same(load(folder, device="cpu"), own(checkpoint("llama", initializer_range=0.5)))
    edit(folder / "config.json", transformers_weights="../other.safetensors")
    with pytest.raises(ValueError, match=r"transformers_weights='\.\./other"):
        load(folder)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_prefixes(prefix: str, copy: Any) -> None:
    folder = copy("llama")
    found = tensors(folder / "model.safetensors")
    save({prefix + name.removeprefix("model."): t for name, t in found.items()}, folder / "model.safetensors")
    same(load(folder, device="cpu"), own(folder))
    save(found | {"norm.weight": found["model.norm.weight"] * 2}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"both norm\.weight and model\.norm\.weight"):
        load(folder)


def test_an_adapter_beside_the_weights_is_refused(copy: Any) -> None:
    folder = copy("llama")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="merge it"):
        load(folder)


# ---- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
@pytest.mark.parametrize("said", [
    {}, {"suppress_tokens": list(range(0, 97, 2))}, {"repetition_penalty": 1.7}, {"eos_token_id": -1},
    {"eos_token_id": [-1, 500]}, {"min_new_tokens": 9, "eos_token_id": list(range(0, 97, 3))},
    {"eos_token_id": list(range(0, 97, 4))},
    {"suppress_tokens": [500, 3]},
    {"num_beams": 1, "no_repeat_ngram_size": 0, "length_penalty": 2.0, "temperature": 0.3},
])  # fmt: skip
def test_settings_give_the_text_of_generate(said: dict[str, Any], file: str, copy: Any) -> None:
    folder = copy("llama")
    if file == "config.json":
        (folder / "generation_config.json").unlink()
    edit(folder / file, **said)
    assert greedy(load(folder, device="cpu")) == generated(own(folder))


REFUSED = {
    "num_beams": 4, "guidance_scale": 1.5, "watermarking_config": {"bias": 2.0}, "sequence_bias": [[[3], -1.0]],
    "bad_words_ids": [[3, 4]], "no_repeat_ngram_size": 3, "encoder_no_repeat_ngram_size": 2, "encoder_repetition_penalty": 1.2,
    "min_length": 8, "forced_bos_token_id": 4, "forced_eos_token_id": 4, "begin_suppress_tokens": [4],
    "exponential_decay_length_penalty": [5, 1.2], "stop_strings": ["x"], "penalty_alpha": 0.6, "dola_layers": "high",
    "token_healing": True, "force_words_ids": [[3]], "forced_decoder_ids": [[1, 2]],
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_settings_that_change_text_are_refused_by_name(name: str, file: str, copy: Any) -> None:
    folder = copy("llama")
    plain = greedy(load(folder, device="cpu"))
    if file == "config.json":
        (folder / "generation_config.json").unlink()
    edit(folder / file, **{name: REFUSED[name]})
    with pytest.raises(ValueError, match=rf"{file} is to be decoded with {name}=.*ignore=\['{name}'\]"):
        load(folder)
    assert greedy(load(folder, device="cpu", ignore=[name])) == plain


@pytest.mark.parametrize("name", ["typical_p", "top_h", "epsilon_cutoff", "eta_cutoff"])
def test_filters_count_where_text_is_sampled(name: str, copy: Any) -> None:
    folder = copy("llama")
    edit(folder / "generation_config.json", do_sample=False, **{name: 0.5})
    load(folder)
    edit(folder / "generation_config.json", do_sample=True)
    with pytest.raises(ValueError, match=name):
        load(folder)


@pytest.mark.parametrize(("said", "message"), [
    ({"do_sample": True, "top_p": 0}, "top_p=0"), ({"do_sample": True, "top_k": -1}, "top_k=-1"),
    ({"max_new_tokens": "9"}, "max_new_tokens='9'"), ({"min_new_tokens": 1.5}, "min_new_tokens=1.5"),
    ({"eos_token_id": "</s>"}, "eos_token_id='</s>'"), ({"suppress_tokens": [1.0]}, "suppress_tokens"),
])  # fmt: skip
def test_bad_settings_are_named_when_a_checkpoint_is_loaded(said: dict[str, Any], message: str, copy: Any) -> None:
    folder = copy("llama")
    edit(folder / "generation_config.json", **said)
    with pytest.raises((ValueError, TypeError), match=message):
        load(folder)
    with pytest.raises(ValueError, match="'magic' is no setting"):
        load(folder, ignore=["magic"])


# ---- a model in memory --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "llama-tied", "qwen3", "gpt2", "gemma3"])
def test_a_model_in_memory(kind: str, checkpoint: Any) -> None:
    theirs = own(checkpoint(kind)).train()
    theirs.generation_config.eos_token_id = list(range(0, 97, 4))
    before = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    model = load(theirs)
    assert isinstance(model, Transformer if kind in ("llama", "llama-tied", "qwen3") else Adapter)
    theirs.eval()
    assert greedy(model) == generated(theirs)
    theirs.train()
    theirs(torch.tensor([PROMPT]), labels=torch.tensor([PROMPT])).loss.backward()  # as before: nothing of it was changed
    assert theirs.training
    assert theirs.config._attn_implementation == "eager"
    assert all(torch.equal(tensor, before[name]) for name, tensor in theirs.state_dict().items())
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.add_(0.05 * weight.grad.sign())
    theirs.eval()
    assert greedy(load(theirs)) == generated(theirs), "loaded again after training"


def test_what_in_memory_cannot_be_read_is_refused(checkpoint: Any) -> None:
    theirs = own(checkpoint("llama"))
    with pytest.raises(TypeError, match="not Linear"):
        load(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="stays where"):
        load(theirs, dtype="bfloat16")
    with torch.device("meta"):
        empty = type(theirs)(theirs.config)
    with pytest.raises(ValueError, match="on meta"):
        load(empty)
    theirs.generation_config.no_repeat_ngram_size = 2
    with pytest.raises(ValueError, match="no_repeat_ngram_size=2"):
        load(theirs)
    theirs.generation_config.no_repeat_ngram_size = 0
    theirs.model.layers[0].forward = lambda x, **_: x
    with pytest.raises(ValueError, match="forward of LlamaDecoderLayer was replaced"):
        load(theirs)


def double(theirs: Any) -> None:
    mlp = type(theirs.model.layers[0].mlp)
    theirs.model.layers[0].mlp.__class__ = type("Doubled", (mlp,), {"forward": lambda self, x: 2 * mlp.forward(self, x)})


ALTERED: dict[str, Callable[[Any], object]] = {
    "class": double,
    "frequencies": lambda theirs: theirs.model.rotary_emb.inv_freq.mul_(0.25),
    "scaling": lambda theirs: setattr(theirs.model.layers[1].self_attn, "scaling", 1.0),
    "activation": lambda theirs: setattr(theirs.model.layers[0].mlp, "act_fn", torch.nn.GELU()),
    "epsilon": lambda theirs: setattr(theirs.model.norm, "variance_epsilon", 1.0),
}


@pytest.mark.parametrize("how", ALTERED)
def test_modules_in_memory_that_differ_from_their_config(how: str, checkpoint: Any) -> None:
    """What the model computes counts, not what its config says."""
    theirs = own(checkpoint("llama"))
    ALTERED[how](theirs)
    same(load(theirs), theirs)


def test_a_model_in_memory_of_two_dtypes_is_not_made_one(checkpoint: Any) -> None:
    theirs = own(checkpoint("llama")).to(torch.bfloat16)
    theirs.lm_head.float()
    with pytest.raises(ValueError, match="cannot run without a cache of its own"):  # nor can its own code run it
        load(theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_unchanged_model_in_memory_is_our_transformer(dtype: torch.dtype, checkpoint: Any) -> None:
    """However far its roundings carry it: the adapter is slower."""
    assert isinstance(load(own(checkpoint("llama", num_hidden_layers=24)).to(dtype)), Transformer)


def test_frozen_parts_of_a_model_in_memory_stay_so(checkpoint: Any) -> None:
    theirs = own(checkpoint("llama")).train()
    theirs.model.layers[0].eval()
    before = [module.training for module in theirs.modules()]
    load(theirs)
    assert [module.training for module in theirs.modules()] == before


def test_hooks_of_a_model_in_memory_still_run(checkpoint: Any) -> None:
    theirs = own(checkpoint("llama"))
    theirs.model.layers[0].mlp.register_forward_hook(lambda _module, _args, output: output * 3)
    same(load(theirs), theirs)


# ---- GGUF ---------------------------------------------------------------------------------------------------------


def write_gguf(file: Path, theirs: Any, kind: str, without: str = "", more: Callable[[Any], object] = bool) -> None:
    """A Llama as llama.cpp's converter writes it: its own names, query and key rows in interleaved order.

    ``theirs`` gets the weights that the file stands for. ``without``: a tensor that is left out. ``more`` is done to the writer.
    """
    import gguf

    config, writer = theirs.config, gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))][: config.vocab_size - 4] + list("▁abc")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([-float(i) for i in range(len(pieces))])
    writer.add_token_types([2, 3, 3, *[6] * (len(pieces) - 7), *[1] * 4])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    quant = gguf.GGMLQuantizationType[kind]
    for name, tensor in theirs.state_dict().items():
        if name == without:
            continue
        weight = tensor.detach().float()
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if part in name:
                weight = weight.view(heads, 2, -1, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)
        target = names.get_name(name, try_suffixes=(".weight",))
        if weight.dim() == 1 or kind == "F32":
            writer.add_tensor(target, weight.numpy())
        else:
            packed = gguf.quants.quantize(weight.numpy(), quant)
            writer.add_tensor(target, packed, raw_dtype=quant)
            weight = torch.from_numpy(gguf.quants.dequantize(packed, quant).reshape(weight.shape))
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if part in name:
                weight = weight.view(heads, -1, 2, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)
        tensor.copy_(weight)
    more(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_0"])
def test_gguf(kind: str, checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gguf")
    theirs = own(checkpoint("llama", vocab_size=288, hidden_size=64, intermediate_size=96))
    file = tmp_path / "tiny.gguf"
    write_gguf(file, theirs, kind)
    monkeypatch.chdir(tmp_path)
    model = load("./tiny.gguf", device="cpu")
    assert isinstance(model, Transformer)
    assert (model.info.name, model.info.dtype, model.info.defaults.stop_ids) == ("tiny", torch.float32, (2,))
    assert model.text is not None
    assert model.text.decode(model.text.encode("a b")) == "a b"
    same(model, theirs)
    assert load(file, device="cpu", dtype="bfloat16").info.dtype == torch.bfloat16
    assert parameters(file) == model.info.parameters == sum(p.numel() for p in theirs.parameters())
    assert architecture(file) == "LlamaForCausalLM"
    first = weights_hash(file)
    file.write_bytes(file.read_bytes()[:-4] + b"abcd")
    assert weights_hash(file) != first


def test_gguf_that_lacks_a_tensor_is_not_made_up(checkpoint: Any, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    write_gguf(tmp_path / "a.gguf", own(checkpoint("llama", vocab_size=288)), "F32", without="model.layers.0.mlp.up_proj.weight")
    with pytest.raises(ValueError, match=r"a.gguf: the file has no tensor model.layers.0.mlp.up_proj.weight$"):
        load(tmp_path / "a.gguf", device="cpu")


@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3", "plain"])
def test_gguf_with_rotary_scaling(kind: str, checkpoint: Any, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    settings = {
        "linear": {"rope_type": "linear", "factor": 4.0},
        "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        "llama3": LLAMA3 | {"factor": 8.0},
        "plain": {},
    }[kind]
    folder = shutil.copytree(checkpoint("llama", vocab_size=288), tmp_path / "folder")
    edit(folder / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 10000.0, **settings})
    theirs = own(folder)
    dim = theirs.config.hidden_size // theirs.config.num_attention_heads

    def more(writer: Any) -> None:
        if kind in ("linear", "yarn"):
            writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
            writer.add_rope_scaling_factor(4.0)
        if kind == "yarn":
            writer.add_rope_scaling_orig_ctx_len(64)
        if kind in ("llama3", "plain"):
            plain = 1.0 / 10000.0 ** (torch.arange(0, dim, 2).float() / dim)
            writer.add_tensor("rope_freqs.weight", (plain / theirs.model.rotary_emb.inv_freq).numpy())

    write_gguf(tmp_path / "a.gguf", theirs, "F32", more=more)
    same(load(tmp_path / "a.gguf", device="cpu"), theirs, [i % 288 for i in range(3, 120)])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (lambda writer: writer.add_string("llama.rope.scaling.type", "longrope"), "rotary scaling that is not read"),
        (lambda writer: writer.add_tensor("rope_freqs.weight", np.full(4, 2, np.float32)), "rope_freqs.weight scales"),
        (lambda writer: writer.add_tensor("blk.0.attn_output.bias", np.ones(32, np.float32)), "it holds"),
    ],
    ids=["scaling", "frequencies", "tensor"],
)
def test_what_a_gguf_file_has_more_of_is_not_passed_over(more: Any, said: str, checkpoint: Any, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    write_gguf(tmp_path / "a.gguf", own(checkpoint("llama", vocab_size=288)), "F32", more=more)
    with pytest.raises(ValueError, match=rf"a\.gguf: .*{said}"):
        load(tmp_path / "a.gguf", device="cpu")


def test_a_gguf_file_has_its_own_tokenizer(checkpoint: Any, tmp_path: Path) -> None:
    """Whatever else lies in its folder."""
    pytest.importorskip("gguf")
    write_gguf(tmp_path / "a.gguf", own(checkpoint("llama", vocab_size=288)), "F32")
    alone = load(tmp_path / "a.gguf", device="cpu")
    nano_tokenizer.load().save_pretrained(tmp_path)
    beside = load(tmp_path / "a.gguf", device="cpu")
    assert alone.text is not None
    assert beside.text is not None
    assert beside.text.encode("a b") == alone.text.encode("a b")
    assert beside.text.tokenizer.chat_template is None


def test_gguf_on_the_command_line(
    checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gguf")
    pytest.importorskip("hydra")
    from forethought.evals.cli import main

    write_gguf(tmp_path / "tiny.gguf", own(checkpoint("llama", vocab_size=288)), "F32")
    monkeypatch.chdir(tmp_path)
    assert main(["solve", "ab", "model=tiny.gguf", "sampling=greedy", "max_tokens=3"]) == 0
    bill = capsys.readouterr().out.strip().splitlines()[-1]
    assert bill.startswith("tiny: 3 tokens")
    assert bill.endswith("asked as raw text: no chat template")


def test_gguf_without_its_package_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    with pytest.raises(FileNotFoundError, match="no such file"):
        load("nothing.gguf")
    (tmp_path / "a.gguf").write_bytes(b"GGUFnonsense")

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(ImportError, match=r"forethought\[gguf\]"):
        load(tmp_path / "a.gguf")
    monkeypatch.undo()
    pytest.importorskip("gguf")
    with pytest.raises(ValueError, match="transformers cannot read it"):
        load(tmp_path / "a.gguf")


# ---- what a checkpoint has beside what is read --------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [f"model.layers.{end}" for end in ("0.self_attn.q_proj.weight_scale", "0.mlp.up_proj.bias", "9.mlp.up_proj.weight")]
)
def test_the_adapter_passes_over_nothing_that_its_modules_need(name: str, checkpoint: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint("gemma3"), tmp_path / "more")
    held = tensors(folder / "model.safetensors")
    save(held | {"vision_tower.patch.weight": torch.ones(3)}, folder / "model.safetensors")
    assert isinstance(load(folder), Adapter), "a part that says nothing about text"
    save(held | {name: torch.ones(3)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=f"has no place for: {name}"):
        load(folder)


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_a_window_is_transformers_own(kind: str, checkpoint: Any, tmp_path: Path) -> None:
    """A Llama has none, whatever its config says; a Mistral has it in every layer."""
    folder = shutil.copytree(checkpoint(kind), tmp_path / kind)
    edit(folder / "config.json", sliding_window=3, layer_types=["full_attention", "sliding_attention"])
    model = load(folder)
    assert isinstance(model, Transformer)
    same(model, own(folder), list(range(3, 30)))


@pytest.mark.parametrize("name", [7, "", "../other/model.safetensors", "model.bin", "a/b.safetensors"])
def test_an_index_names_files_of_its_folder(name: object, checkpoint: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint("llama"), tmp_path / "indexed")
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    edit(folder / "model.safetensors.index.json", weight_map={"lm_head.weight": name, "model.norm.weight": "part.safetensors"})
    with pytest.raises(ValueError, match="no safetensors file of this folder"):
        load(folder)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"tokenizer": "cpu"}, TypeError, "tokenizer='cpu': a fast transformers tokenizer, not str"),
        ({"dtype": "float8_e4m3fn"}, ValueError, "dtype='float8_e4m3fn': 'auto', or one of float32, bfloat16"),
        ({"device": "meta"}, ValueError, "device='meta'"),
        ({"ignore": iter(["magic"])}, ValueError, "'magic' is no setting"),
    ],
    ids=["tokenizer", "dtype", "device", "ignore"],
)
def test_what_cannot_be_asked_for(options: dict[str, Any], error: type[Exception], said: str, checkpoint: Any) -> None:
    with pytest.raises(error, match=said):
        load(checkpoint("llama"), **options)


def test_ignored_names_may_come_one_by_one(checkpoint: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint("llama"), tmp_path / "beams")
    edit(folder / "generation_config.json", num_beams=4)
    assert load(folder, ignore=iter(["num_beams"])).info.name == "beams"
