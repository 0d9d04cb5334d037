"""Tokenizers of other layouts: CLIP's byte pairs are open_clip's own; the rest are transformers'."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from clipvet.errors import UserError

FILES = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json"),
    *("added_tokens.json", "spiece.model", "tokenizer.model"),
)


class Foreign:
    """A tokenizer of transformers, from its files; loaded when first used. No code of its own is run."""

    def __init__(self, files: Mapping[str, bytes], length: int):
        self.files, self.context_length, self.loaded = {k: files[k] for k in FILES if k in files}, length, None

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """Rows of `context_length` tokens, as transformers pads and cuts them. UserError without the means."""
        if self.loaded is None:
            if not self.files:
                raise UserError("the model's folder holds no tokenizer; put transformers' tokenizer files beside it")
            try:
                from transformers import AutoTokenizer  # pyright: ignore[reportMissingImports]
            except ImportError as e:
                raise UserError("this model's tokenizer needs transformers; pip install 'clipvet[hf]'") from e
            with tempfile.TemporaryDirectory() as folder:
                for name, held in self.files.items():
                    (Path(folder) / name).write_bytes(held)
                try:
                    self.loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
                except Exception as e:  # a damaged file can raise anything
                    why = (str(e).strip().splitlines() or [type(e).__name__])[0][:160]
                    raise UserError(f"the model's tokenizer cannot be loaded ({why}); restore its files") from e
        cut = {"padding": "max_length", "max_length": self.context_length, "truncation": True}
        return self.loaded(list(captions), return_tensors="pt", **cut)["input_ids"]


def made_of(files: Mapping[str, bytes], text_cfg: Mapping[str, Any], clips: bool) -> Any:
    """CLIP's byte pairs where a CLIP's files hold nothing else, or transformers' tokenizer."""
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
            added = {t["id"] for t in told.get("added_tokens", [])}
            if {k: v for k, v in told["model"]["vocab"].items() if v not in last} != words or mine != merges:
                return False
            if not added <= last:
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
        extra = json.loads(files.get("added_tokens.json", b"{}"))
        return set(extra.values()) <= last
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


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
