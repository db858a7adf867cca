"""Checkpoints as one GGUF file, which llama.cpp and transformers read (extra ``gguf``).

The matrices of the blocks are written in the type that is asked for, by the library gguf: ``F16``; ``Q8_0``
and ``Q4_0``, 8 or 4 bits a weight and one float16 scale for each 32 of them (8.5 and 4.5 bits). Beside
``Q4_0``, embeddings and head have ``Q8_0``; rows that are no multiple of 32 long have ``F16``; vectors are
float32. The rows of queries and keys of a Llama are put in the order in which GGUF rotates them.
"""
from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from trainwright.core.errors import UserError
from trainwright.families.tokenizers import front, suffix

TYPES = ("Q8_0", "Q4_0", "F16")
NAMES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2"}
"""What GGUF calls the types of models that can be written."""
ROW = 32
"""Weights that share a scale, in a row."""
NORMAL, CONTROL, ADDED, UNUSED = 1, 3, 4, 5
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
SPLITS = {WORDS % "{1,3}" + r"|\s+(?!\S)|\s+": "llama-bpe", WORDS % "" + r"|\s+(?!\S)|\s+": "qwen2"}
"""How texts are cut before the merges, by the name that GGUF has for it: the expressions of the tokenizers of
Llama 3 and of Qwen 2."""


def write(model: nn.Module, file: Path, kind: str, tokenizer: Any) -> None:
    """Write a model of transformers as a GGUF file.

    Raises:
        UserError: what ``check`` refuses, or a tokenizer for which GGUF has no name here.
    """
    config: Any = model.config
    check(config, kind)
    words = _words(tokenizer, config.vocab_size)
    import gguf
    arch = NAMES[config.model_type]
    writer = gguf.GGUFWriter(file, arch, use_temp_file=True)
    _describe(writer, config, kind)
    for key, value in words.items():
        _put(writer, f"tokenizer.{key}", value)
    known = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(known[arch], config.num_hidden_layers)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight    # type: ignore[operator]
    for name, tensor in model.state_dict().items():
        if not (tied and name == "lm_head.weight"):
            new = names.get_name(name, try_suffixes=(".weight", ".bias"))
            _add(writer, new, _rotated(tensor, new, config) if arch == "llama" else tensor, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def check(config: Any, kind: str) -> None:
    """Refuse what cannot be written, before anything is.

    Raises:
        UserError: no such type of numbers; the library is missing; another type of model, or one of these
            with parts that a GGUF file would leave out.
    """
    if kind not in TYPES:
        raise UserError(f"a GGUF file has the dtype {', '.join(TYPES[:-1])} or {TYPES[-1]}, not {kind!r}.")
    if importlib.util.find_spec("gguf") is None:
        raise UserError("writing GGUF needs the library gguf: pip install 'trainwright[gguf]'.")
    named = getattr(config, "model_type", type(config).__name__)
    if named not in NAMES:
        raise UserError(f"GGUF files are written of models of the types {', '.join(NAMES)}, and this is a "
                        f"{named!r}: export it as a checkpoint.")
    rope = (config.rope_parameters or {}).get("rope_type", "default")
    window = getattr(config, "sliding_window", None) or config.max_position_embeddings
    odd = {f"rope_type = {rope!r}": rope != "default",
           f"hidden_act = {config.hidden_act!r}": config.hidden_act != "silu",
           f"sliding_window = {window}": window < config.max_position_embeddings}
    odd |= {f"{one} = true": True for one in ("attention_bias", "mlp_bias") if getattr(config, one, False)}
    if found := [said for said, is_odd in odd.items() if is_odd]:
        raise UserError(f"GGUF files are not written of a model with {found[0]}: export it as a checkpoint.")


def _describe(writer: Any, config: Any, kind: str) -> None:
    import gguf
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(width)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _rotated(tensor: Tensor, name: str, config: Any) -> Tensor:
    """Queries and keys with the two halves of each head interleaved, as GGUF rotates them: neighbours in
    place of entries that lie half a head apart."""
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    count = next((heads[part] for part in name.split(".") if part in heads), None)
    if count is None:
        return tensor
    return tensor.unflatten(0, (count, 2, -1)).transpose(1, 2).reshape(tensor.shape)


def _add(writer: Any, name: str, tensor: Tensor, kind: str) -> None:
    import gguf
    values = tensor.detach().float().cpu().contiguous().numpy()
    if tensor.ndim < 2:
        writer.add_tensor(name, values)
        return
    if kind == "Q4_0" and name.startswith(("token_embd", "output.")):
        kind = "Q8_0"
    chosen = gguf.GGMLQuantizationType[kind if tensor.shape[1] % ROW == 0 else "F16"]
    writer.add_tensor(name, gguf.quants.quantize(values, chosen), raw_dtype=chosen)


# ---- the tokenizer ---------------------------------------------------------------------------------------


def _words(tokenizer: Any, rows: int) -> dict[str, Any]:
    """What a GGUF file says of a tokenizer; ``rows`` is how many tokens the model has embeddings for."""
    if tokenizer is None:
        return {"ggml.model": "none"}
    table = json.loads(tokenizer.backend_tokenizer.to_str())
    pre, added = _split(table), {one["content"]: one for one in table["added_tokens"]}
    places = {at: word for word, at in tokenizer.get_vocab().items()}
    words = [places.get(at, f"[PAD{at}]") for at in range(rows)]
    kinds = [UNUSED if at not in places else NORMAL if word not in added
             else CONTROL if added[word]["special"] else ADDED for at, word in enumerate(words)]
    merges = [one if isinstance(one, str) else " ".join(one) for one in table["model"]["merges"]]
    ids = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "unknown": tokenizer.unk_token_id,
           "padding": tokenizer.pad_token_id}
    return {"ggml.model": "gpt2", "ggml.pre": pre, "ggml.tokens": words, "ggml.token_type": kinds,
            "ggml.merges": merges, "ggml.add_space_prefix": False,
            "ggml.add_bos_token": bool(front(tokenizer)), "ggml.add_eos_token": bool(suffix(tokenizer)),
            "chat_template": tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None,
            **{f"ggml.{word}_token_id": at for word, at in ids.items()}}


def _split(table: dict[str, Any]) -> str:
    """The name that GGUF has for how a tokenizer cuts texts before the merges.

    Raises:
        UserError: it has none that is known here; with another one the model would read other tokens.
    """
    pre = table.get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers", [pre])
    last = steps[-1]
    whole = last.get("type") == "ByteLevel" and not last.get("add_prefix_space")
    plain = table.get("normalizer") is None or table["normalizer"].get("type") == "NFC"
    if table["model"]["type"] == "BPE" and whole and plain:
        if len(steps) == 1 and last.get("use_regex"):
            return "gpt-2"
        if len(steps) == 2 and steps[0]["type"] == "Digits" and steps[0]["individual_digits"]:
            return "smollm"
        found = SPLITS.get(steps[0].get("pattern", {}).get("Regex", ""))
        if len(steps) == 2 and found:
            return found
    raise UserError("GGUF has no name that is known here for how this model's tokenizer cuts texts, and with "
                    "another one the model would read other tokens: export it as a checkpoint.")


def _put(writer: Any, key: str, value: Any) -> None:
    """A field of the type that its value has; none where there is no value."""
    import gguf
    if value is None or value == []:
        return
    kinds = {bool: "BOOL", int: "UINT32", str: "STRING", list: "ARRAY"}
    writer.add_key_value(key, value, gguf.GGUFValueType[kinds[type(value)]])
