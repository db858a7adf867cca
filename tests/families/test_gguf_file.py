"""GGUF: transformers reads from the file the logits, the tokens and the weights that were written."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from trainwright import families
from trainwright.check import tiny
from trainwright.core.errors import UserError
from trainwright.families import gguf_file

gguf = pytest.importorskip("gguf")
SHAPE = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
ERRORS = {"F16": 1e-3, "Q8_0": 0.02, "Q4_0": 0.2}
"""The largest error of logits that the types may have, as a share of their length. Of the weights of a row of
normal numbers they are 3e-4, 0.006 and 0.08."""


def model(kind: str = "llama", **more: Any) -> Any:
    made = families.from_table({"type": kind} | SHAPE | more, None, "a test")
    return families.create(made, 0, "a test").eval()


DIGITS = {"type": "Digits", "individual_digits": True}
BYTES = {"type": "ByteLevel", "use_regex": True, "add_prefix_space": False}


@pytest.mark.parametrize(("kind", "more"), [
    ("llama", {"head_dim": 32, "tie_word_embeddings": True}), ("mistral", {"sliding_window": None}),
    ("qwen2", {})])
@pytest.mark.parametrize("dtype", gguf_file.TYPES)
def test_transformers_reads_the_same_function(kind: str, more: dict[str, Any], dtype: str,
                                              tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM
    made = model(kind, **more)
    for name, p in made.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(p, std=0.5, generator=torch.Generator().manual_seed(0))
    gguf_file.write(made, tmp_path / "m.gguf", dtype, None)
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32).eval()
    ids = torch.arange(40)[None]
    with torch.no_grad():
        before, after = made(ids).logits, read(ids).logits
    assert float((before - after).norm() / before.norm()) < ERRORS[dtype]
    assert read.config.tie_word_embeddings == made.config.tie_word_embeddings


def test_each_matrix_has_the_bits_that_were_asked_for(tmp_path: Path) -> None:
    """Rows of 96 = 3 * 32 in 4 bits and a scale; the embeddings in 8; rows of 48 in float16; norms whole."""
    made = model(intermediate_size=48)
    gguf_file.write(made, tmp_path / "m.gguf", "Q4_0", None)
    found = {t.name: (t.tensor_type.name, t.n_bytes) for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert found["token_embd.weight"] == ("Q8_0", 300 * 64 // 32 * 34)
    assert found["output.weight"][0] == "Q8_0"
    assert found["blk.1.attn_q.weight"] == ("Q4_0", 64 * 64 // 32 * 18)
    assert found["blk.0.ffn_down.weight"][0] == "F16"
    assert found["blk.0.attn_norm.weight"][0] == "F32"


def test_an_export_has_the_tokenizer(tmp_path: Path) -> None:
    from transformers import AutoTokenizer
    tokenizer = families.load_tokenizer(tiny.corpus(), "a test")
    families.save(model(vocab_size=310), tmp_path / "plain", tokenizer)
    families.export(tmp_path / "plain", tmp_path / "out", form="gguf")
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["model-Q8_0.gguf"]
    read = AutoTokenizer.from_pretrained(tmp_path / "out", gguf_file="model-Q8_0.gguf")
    text = "def f(x):  return x+123 # it's é, 日本"
    assert read(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert (read.eos_token_id, read.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


def test_what_a_file_would_leave_out_is_refused(tmp_path: Path) -> None:
    families.save(tiny.model(tiny.GPT2), tmp_path / "gpt2", None)
    with pytest.raises(UserError, match="of the types llama, mistral, qwen2, and this is a 'gpt2'"):
        families.export(tmp_path / "gpt2", tmp_path / "out", form="gguf")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="not 'int3'"):
        families.export(tmp_path / "gpt2", tmp_path / "out", "int3", "gguf")
    with pytest.raises(UserError, match="with attention_bias = true"):
        gguf_file.check(model(attention_bias=True).config, "F16")
    with pytest.raises(UserError, match="format must be checkpoint or gguf"):
        families.export(tmp_path / "gpt2", tmp_path / "out", form="onnx")
    odd = {"model": {"type": "BPE"}, "pre_tokenizer": {"type": "Whitespace"}}
    with pytest.raises(UserError, match="how this model's tokenizer cuts texts"):
        gguf_file._split(odd)
    odd["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [DIGITS, BYTES]}        # type: ignore[dict-item]
    assert gguf_file._split(odd) == "smollm"
