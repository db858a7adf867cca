"""Tokenizers: read or refused, and which of their tokens end a text, a turn and what a model writes."""
from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from trainwright import families
from trainwright.core.errors import UserError
from trainwright.corpus import bpe, chat
from trainwright.families import tokenizers
from trainwright.families.checkpoints import DATA
from trainwright.families.libraries import PLAIN

TEXT = ["the sea the ship the rain"] * 3
TINY: dict[str, Any] = {"type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
                        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}


@pytest.fixture
def talker() -> Any:
    """A tokenizer whose turns end with another token than texts do."""
    made = bpe.train(TEXT, 300, chat.control_tokens("chatml"))
    made.chat_template = chat.Chat(made, "chatml").template
    return made


def words(template: str, **special: str) -> Any:
    """A tokenizer of a few words with a post-processor."""
    names = ["<s>", "</s>", "[SEP]", "a", "b"]
    backend = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(names[:3])
    backend.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(n, i) for i, n in enumerate(names[:3])])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


# ---- reading --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", (0, 1))
def test_a_tokenizer_without_entries_is_refused(left: int, tmp_path: Path) -> None:
    bpe.train(TEXT, 300).save_pretrained(tmp_path)
    held = json.loads((tmp_path / "tokenizer.json").read_text())
    held["model"] |= {"vocab": {}, "merges": []}
    held |= {"added_tokens": held["added_tokens"][:left], "post_processor": None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(held))
    with pytest.raises(
        UserError, match=r"^here: the tokenizer of .* has no entries: its files are not whole"
    ):
        families.load_tokenizer(tmp_path, "here")


def test_sentencepiece_alone_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\x05hello")
    for config in ({}, {"tokenizer_class": "LlamaTokenizer"}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        with pytest.raises(
            UserError, match=r"tokenizer.model is of SentencePiece, and there is no tokenizer.json: convert"
        ):
            families.load_tokenizer(tmp_path, "here")


def test_code_beside_a_tokenizer_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bpe.train(TEXT, 300).save_pretrained(tmp_path)
    ran, file = tmp_path / "ran", tmp_path / "tokenizer_config.json"
    (tmp_path / "mine.py").write_text(f"import pathlib\npathlib.Path({str(ran)!r}).touch()\n")
    told = {"auto_map": {"AutoTokenizer": ["mine.T", None]}, "tokenizer_class": "MineTokenizer"}
    file.write_text(json.dumps(json.loads(file.read_text()) | told))
    with pytest.raises(UserError, match=r"^here: cannot load the tokenizer"):
        families.load_tokenizer(tmp_path, "here")
    assert not ran.exists() and "y/N" not in capsys.readouterr().out


# ---- ends -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("template", "behind", "prompt"),
    [
        ("$A", [], [3, 4]),
        ("<s> $A", [], [0, 3, 4]),
        ("$A </s>", [1], [3, 4]),
        ("<s> $A </s>", [1], [0, 3, 4]),
        ("<s> $A [SEP] </s>", [2, 1], [0, 3, 4]),
    ],
)
def test_a_prompt_does_not_end_with_what_ends_a_text(
    template: str, behind: list[int], prompt: list[int]
) -> None:
    tokenizer = words(template, bos_token="<s>", eos_token="</s>")
    causal = families.create(families.from_table(TINY, tokenizer, "here"), 0, "here")
    assert tokenizers.suffix(tokenizer) == behind and families.prompt(causal, tokenizer, "a b") == prompt
    t5 = families.create(
        families.from_table(
            {"type": "t5", "d_model": 16, "d_ff": 16, "d_kv": 8, "num_layers": 1, "num_heads": 2},
            tokenizer,
            "here",
        ),
        0,
        "here",
    )
    assert families.prompt(t5, tokenizer, "a b") == prompt + behind, "an encoder reads a text with its end"


def test_the_end_of_a_turn_is_that_of_the_template(talker: Any) -> None:
    assert tokenizers.turn_end(talker) == talker.convert_tokens_to_ids("<|im_end|>") != talker.eos_token_id
    assert tokenizers.turn_end(bpe.train(TEXT, 300)) is None
    for template, end in (("{% for m in messages %}{{ m['content'] }}</s>{% endfor %}", 1),
                          ("{% for m in messages %}{{ m['content'] }}\n{% endfor %}", None),
                          ("{{ raise_exception('no') }}", None), ("{{ messages[0].x.y.z }}", None),
                          ("{% for m in messages %}[SEP]{{ m['content'] }} b</s>{% endfor %}", None)):
        other = words("$A", eos_token="[SEP]")
        other.chat_template = template
        assert tokenizers.turn_end(other) == end, template


def test_an_export_stops_where_a_turn_or_a_text_ends(talker: Any, tmp_path: Path) -> None:
    model: Any = families.create(families.from_table(TINY, talker, "here"), 0, "here")
    families.save(model, tmp_path, talker)
    text, turn = talker.eos_token_id, talker.convert_tokens_to_ids("<|im_end|>")
    for file in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / file).read_text())["eos_token_id"] == [text, turn], file
    made, own = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for end in (text, turn):
        with torch.no_grad():                              # whatever is read, this token is the likeliest
            made.get_output_embeddings().weight.zero_()
            made.model.norm.weight.fill_(1.0)
        only = [
            lambda ids, scores, end=end: torch.full_like(scores, -1e9).index_fill(1, torch.tensor([end]), 0.0)
        ]
        given = own("the sea", return_tensors="pt")
        said = made.generate(**given, max_new_tokens=9, do_sample=False, logits_processor=only)
        assert said[0, given["input_ids"].shape[1]:].tolist() == [end]
    loaded: Any = families.load(tmp_path, "here")
    assert loaded.generation_config.eos_token_id == [text, turn]
    families.save(loaded, tmp_path / "again", own)
    assert json.loads((tmp_path / "again" / "config.json").read_text())["eos_token_id"] == [text, turn]


def test_what_a_config_says_of_its_ends_is_kept(tmp_path: Path) -> None:
    tokenizer = bpe.train(TEXT, 300)
    model: Any = families.create(families.from_table(TINY, tokenizer, "here"), 0, "here")
    families.save(model, tmp_path / "plain", tokenizer)
    assert (
        json.loads((tmp_path / "plain" / "config.json").read_text())["eos_token_id"] == tokenizer.eos_token_id
    )
    model.generation_config.eos_token_id = [7, 9]
    families.save(model, tmp_path / "more", tokenizer)
    assert json.loads((tmp_path / "more" / "generation_config.json").read_text())["eos_token_id"] == [7, 9, 0]


def test_whatever_file_a_tokenizer_reads_belongs_to_a_checkpoint() -> None:
    """The names stand in the sources of transformers' tokenizers, those that are pickled aside."""
    files = Path(transformers.__file__).parent.glob("models/*/tokenization_*.py")
    sources = [file.read_text("utf-8") for file in files]
    tables = [t for source in sources for t in re.findall(r"VOCAB_FILES_NAMES\s*=\s*\{(.*?)\}", source, re.S)]
    names = {name for table in tables for name in re.findall(r":\s*\"([^\"]+)\"", table)}
    assert len(names) > 15 and {Path(name).suffix for name in names} <= {*PLAIN, ".pkl"}
    assert {f"*{Path(name).suffix}" for name in names} <= {*DATA, "*.pkl"}


@pytest.mark.parametrize("talk", ["any", "long"])
def test_a_template_that_comes_to_no_end_is_refused(
    talk: str, talker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here one that is only long, so that it does not run on beside other tests."""
    monkeypatch.setattr(tokenizers, "PATIENCE", 0.1)
    work = "{% for a in range(99999) %}{% for b in range(50) %}{% endfor %}{% endfor %}"
    talker.chat_template = work if talk == "any" else f"{{% if messages|length > 9 %}}{work}{{% endif %}}"
    talker.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="comes to no end: a short talk and a long one were not written"):
        families.load_tokenizer(tmp_path, "some.toml")


def test_a_name_of_the_hub_is_not_a_folder_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers prefers a folder, which may be a stranger's."""
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="hf://owner/name is also the name of a folder here"):
        families.load_tokenizer("hf://owner/name", "some.toml")
    with pytest.raises(UserError, match="hf://owner/name is also the name of a folder here"):
        families.load_config("hf://owner/name", "some.toml")
