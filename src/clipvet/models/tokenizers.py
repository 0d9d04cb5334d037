"""Tokenizers of other layouts: CLIP's byte pairs are open_clip's own; the rest are transformers'."""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from clipvet import io
from clipvet.errors import UserError

FILES = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json"),
    *("added_tokens.json", "spiece.model", "tokenizer.model"),
)

SPECIAL = {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
STEPS = {  # of a CLIP's tokenizer.json beside its words and merges, as transformers 4 and 5 write them
    "normalizer": [{"type": "Sequence", "normalizers": [
        {"type": "NFC"}, {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}, {"type": "Lowercase"}]}],
    "pre_tokenizer": [{"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": words}, "behavior": "Removed", "invert": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, **own}]}
        for words in (WORDS, rf"<\|startoftext\|>|<\|endoftext\|>|{WORDS}") for own in ({}, {"use_regex": True})],
    "post_processor": [{
        "type": "RobertaProcessing", "sep": ["<|endoftext|>", 49407], "cls": ["<|startoftext|>", 49406],
        "trim_offsets": False, "add_prefix_space": False}],
}  # fmt: skip
ROLES = {"bos_token": "<|startoftext|>"} | dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>")
CLASSES = ("CLIPTokenizer", "CLIPTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend", None)
MODEL = {"type": "BPE", "unk_token": "<|endoftext|>", "end_of_word_suffix": "</w>"}  # what else it says is off


class Foreign:
    """A tokenizer of transformers, from its files; loaded when first used. No code of its own is run."""

    def __init__(self, files: Mapping[str, bytes], length: int):
        self.files, self.context_length, self.loaded = {k: files[k] for k in FILES if k in files}, length, None

    def __call__(self, captions: Sequence[str], context_length: int | None = None) -> Tensor:
        """Rows of `context_length` tokens, as transformers pads and cuts them. UserError without the means."""
        if self.loaded is None:
            if not self.files:
                raise UserError(
                    "the model's folder holds no tokenizer; put transformers' tokenizer files there, and delete its "
                    "card.json, which knows of none"
                )
            try:
                from transformers import AutoTokenizer  # pyright: ignore[reportMissingImports]
            except ImportError as e:
                raise UserError("this model's tokenizer needs transformers; pip install 'clipvet[hf]'") from e
            with tempfile.TemporaryDirectory() as folder:
                for name, held in self.files.items():
                    (Path(folder) / name).write_bytes(held)
                with _told("cannot be loaded"):
                    self.loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        cut = {"padding": "max_length", "max_length": context_length or self.context_length, "truncation": True}
        with _told("fails on a caption"):
            return self.loaded(list(captions), return_tensors="pt", **cut)["input_ids"]

    def decode(self, tokens: Sequence[int]) -> str:
        return self.loaded.decode(tokens, skip_special_tokens=True) if self.loaded else ""


@contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as e:  # a damaged file can raise anything; a panic of Rust, by a regex say, is no Exception
        raise UserError(f"the model's tokenizer {what} ({io.line(e)}); restore its files") from e


def made_of(files: Mapping[str, bytes], text_cfg: Mapping[str, Any], clips: bool) -> Any:
    """CLIP's byte pairs where a CLIP's files say nothing else, or transformers' tokenizer."""
    from open_clip import SimpleTokenizer

    plain = SimpleTokenizer(context_length=text_cfg["context_length"])
    if clips and text_cfg["vocab_size"] == plain.vocab_size and _is_plain(files, plain):
        return plain
    return Foreign(files, text_cfg["context_length"])


def _is_plain(files: Mapping[str, bytes], plain: Any) -> bool:
    words = {k: v for k, v in plain.encoder.items() if v < plain.sot_token_id}
    merges = [" ".join(m) for m in plain.bpe_ranks]
    last = set(plain.all_special_ids)
    try:
        if "tokenizer.json" in files:
            told = json.loads(files["tokenizer.json"])
            mine = [m if isinstance(m, str) else " ".join(m) for m in told["model"]["merges"]]
            model = {k: v for k, v in told["model"].items() if v and k not in ("vocab", "merges")}
            if {k: v for k, v in told["model"]["vocab"].items() if v not in last} != words or mine != merges:
                return False
            if {"type": "BPE"} | model != MODEL or not all(told.get(k) in known for k, known in STEPS.items()):
                return False
            if not all(_is_special(t["id"], t) for t in told.get("added_tokens", [])):
                return False
        if (
            "vocab.json" in files
            and {k: v for k, v in json.loads(files["vocab.json"]).items() if v not in last} != words
        ):
            return False
        if "merges.txt" in files:
            lines = files["merges.txt"].decode().splitlines()
            if [x for x in lines[1:] if x.strip()][: len(merges)] != merges:
                return False
        config = json.loads(files.get("tokenizer_config.json", b"{}"))
        for told in (config, json.loads(files.get("special_tokens_map.json", b"{}"))):
            own = {k: v["content"] if isinstance(v, dict) else v for k, v in told.items() if k in ROLES and v}
            if not own.items() <= ROLES.items() or told.get("tokenizer_class") not in CLASSES:
                return False
            if told.get("additional_special_tokens") or told.get("extra_special_tokens"):
                return False
        if not all(_is_special(int(k), t) for k, t in config.get("added_tokens_decoder", {}).items()):
            return False
        return json.loads(files.get("added_tokens.json", b"{}")).items() <= SPECIAL.items()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _is_special(number: int, token: Mapping[str, Any]) -> bool:
    loose = any(token.get(k) for k in ("single_word", "lstrip", "rstrip"))
    return SPECIAL.get(token["content"]) == number and not loose


def files_of(plain: Any) -> dict[str, bytes]:
    """transformers' files for CLIP's byte pairs."""
    begin, end = "<|startoftext|>", "<|endoftext|>"
    vocab = {k: v for k, v in plain.encoder.items() if v < plain.sot_token_id}
    vocab |= {begin: plain.sot_token_id, end: plain.eot_token_id}
    told = {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": plain.context_length,
        "bos_token": begin, "eos_token": end, "unk_token": end, "pad_token": end,
    }  # fmt: skip
    lines = ["#version: 0.2", *(" ".join(m) for m in plain.bpe_ranks)]
    return {
        "vocab.json": json.dumps(vocab, ensure_ascii=False).encode(),
        "merges.txt": ("\n".join(lines) + "\n").encode(),
        "tokenizer_config.json": json.dumps(told, indent=2).encode(),
    }
