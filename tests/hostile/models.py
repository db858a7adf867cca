"""Models' folders from elsewhere in which a file is not what it was, and recipes to begin with, for data that
are not what they should be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.hostile.inputs import TEXT, Draw, Input, chat, data
from tests.hostile.values import VALUES
from trainwright import families
from trainwright.corpus import bpe
from trainwright.planning.templates import templates

MODEL = "m"
"""The folder; what an input does not write of it is that of ``make``."""
TABLE: dict[str, Any] = {
    "type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 300,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 128,
}
CONFIG: dict[str, Any] = TABLE | {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-6, "dtype": "float32",
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "tie_word_embeddings": False,
    "attention_bias": False, "attention_dropout": 0.0, "hidden_act": "silu", "initializer_range": 0.02,
    "mlp_bias": False, "pretraining_tp": 1, "use_cache": True, "bos_token_id": 0, "eos_token_id": 0,
    "pad_token_id": None, "transformers_version": "5.0.0", "num_labels": 2, "id2label": {"0": "a"},
    "quantization_config": None, "auto_map": None, "layer_types": None, "sliding_window": None,
    "text_config": None, "is_encoder_decoder": False, "chunk_size_feed_forward": 0, "pruned_heads": {},
    "torch_dtype": "float32", "attn_implementation": None, "problem_type": None, "return_dict": True,
    "output_hidden_states": False, "is_decoder": False,
}  # fmt: skip
SAYS: dict[str, Any] = {
    "eos_token_id": 0, "bos_token_id": 0, "pad_token_id": 0, "top_k": 50, "top_p": 1.0, "min_p": None,
    "temperature": 1.0, "max_length": 20, "max_new_tokens": 20, "num_beams": 1, "num_return_sequences": 1,
    "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "suppress_tokens": [], "do_sample": True,
    "cache_implementation": None, "forced_bos_token_id": None, "stop_strings": None, "assistant_model": None,
    "prompt_lookup_num_tokens": None, "custom_generate": None, "decoder_start_token_id": None,
}
"""What a ``generation_config.json`` may say."""
READS: dict[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 128, "eos_token": "<|endoftext|>",
    "bos_token": None, "pad_token": None, "chat_template": None, "added_tokens_decoder": {}, "auto_map": None,
    "extra_special_tokens": [], "clean_up_tokenization_spaces": False, "padding_side": "right",
    "backend": "tokenizers", "add_bos_token": False, "special_tokens_map_file": None,
}
"""What a ``tokenizer_config.json`` may say."""
LARGE = {"2**62": 2**62, "2**31 - 1": 2**31 - 1, "a thousand millions": 10**9, "a million": 10**6, "-2": -2}
FIT = [
    name
    for name in VALUES
    if not name.startswith(("deep", "a date", "an hour", "a table of dates", "5,000 digits"))
]
"""Values that JSON can hold, and that Python writes without recursion."""
BROKEN = [
    "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors",
    "model.safetensors.index.json", "chat_template.jinja", "adapter/surgery.json", "part.json",
]  # fmt: skip


def make(folder: Path) -> Path:
    """The model that such folders were, with its tokenizer."""
    tokenizer = bpe.train([TEXT, "user assistant system it"] * 3, 300, ["<|im_start|>", "<|im_end|>"])
    made = families.create(families.from_table(TABLE, tokenizer, "here"), 0, "here")
    families.save(made, folder, tokenizer)
    return folder


def edited(draw: Draw) -> Input:
    """A field of a JSON file of a model that nobody can mean."""
    name, table = draw.choice(
        [("config.json", CONFIG)] * 4 + [("generation_config.json", SAYS), ("tokenizer_config.json", READS)]
    )
    key = draw.choice(list(table))
    what, value = draw.choice([*LARGE.items(), *((n, VALUES[n]) for n in FIT)])
    inner = table[key] if isinstance(table[key], dict) and table[key] and draw.random() < 0.5 else None
    changed = value if inner is None else inner | {draw.choice(list(inner)): value}
    text = json.dumps(table | {key: changed})
    return _used(draw, f"{name}: {key} is {what}", {f"{MODEL}/{name}": text.encode()})


def broken(draw: Draw) -> Input:
    """A file of a model's folder that is not what it should be."""
    name = draw.choice(BROKEN)
    content = draw.choice(
        [
            b"", b"{", b"[]", b"7", b"null", b"\xff\xfe", b"[" * 50_000, draw.randbytes(60), b"{{ x",
            b'{"a": ' + b"9" * 5000 + b"}", (2**40).to_bytes(8, "little") + b"{}", b"\x02" + bytes(7) + b"{}",
            b"{{ messages.__class__.__mro__ }}", b"{% for x in range(10**9) %}{% endfor %}",
        ]
    )
    return _used(draw, f"{name} is {content[:12]!r}", {f"{MODEL}/{name}": content})


def _used(draw: Draw, what: str, files: dict[str, bytes]) -> Input:
    words = draw.choice(
        [
            ("generate", MODEL, "-p", "the sea", "--tokens", "2"),
            ("generate", MODEL, "-p", "the sea", "--tokens", "2", "--chat"),
            ("init", "continue", "--data", "texts", "--model", MODEL),
        ]
    )
    return Input(f"model: {what}", words, files)


def begun(draw: Draw) -> Input:
    """A recipe to begin with, for a file in which something is wrong."""
    given = draw.choice([data, chat])(draw)
    files = {name: content for name, content in given.files.items() if name != "r.toml"}
    template = draw.choice([*templates(), "x"])
    words = ("init", template, "--data", draw.choice([*files, "d"]), "--model", MODEL)
    return Input(f"init {template}: {given.what}", words, files)
