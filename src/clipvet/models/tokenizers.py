"""Tokenizers of other layouts. CLIP's own byte pairs are read by `byte_pairs`, all others by transformers."""

import functools
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from clipvet import io
from clipvet.errors import UserError
from clipvet.models import deployed

FILES = deployed.TOKENIZER
SPECIAL = {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
STEPS = {  # what CLIP's tokenizer.json says beside words and merges, in the versions that transformers 4 and 5 write
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
SETS_NOTHING = (  # keys of tokenizer_config.json that change no token of CLIP's
    *("name_or_path", "special_tokens_map_file", "tokenizer_file", "processor_class", "backend", "is_local"),
    *("local_files_only", "add_prefix_space", "errors", "do_lower_case", "clean_up_tokenization_spaces", "use_fast"),
    *("tokenizer_class", "added_tokens_decoder", "model_max_length", *ROLES),  # read below
)
MODEL = {"type": "BPE", "unk_token": "<|endoftext|>", "end_of_word_suffix": "</w>"}  # other options must be off


class Foreign:
    """A tokenizer of transformers, loaded from its files when it is first used. Code that they bring is not run."""

    most = 2**17  # characters of a caption; its time does not grow with their square

    def __init__(self, files: Mapping[str, bytes], length: int):
        """files: content by name, of those in FILES. length: the context length, in tokens."""
        self.files, self.context_length, self.loaded = {k: files[k] for k in FILES if k in files}, length, None
        told = json.loads(files.get("config.json", b"{}"))
        self.kind = told.get("model_type")  # says which class of tokenizer it is, if the tokenizer's files do not
        text = told.get("text_config_dict") or told.get("text_config") or {}
        self.end = text.get("eos_token_id", 49407)  # CLIP is read there; 2: at the largest token

    def __call__(self, captions: Sequence[str], context_length: int | None = None) -> Int[Tensor, "b l"]:
        """One row of tokens for each caption, padded or cut to `context_length` (None: the model's) by transformers.

        Raises UserError if there are no files, if transformers is not installed, or if the tokenizer fails.
        """
        if self.loaded is None:
            self.loaded = self._load()
        cut = {"padding": "max_length", "max_length": context_length or self.context_length, "truncation": True}
        with _refused("fails on a caption"):
            held = self.loaded(list(captions), return_tensors="pt", **cut)
        rows = held["input_ids"]
        self._check(rows, held.get("attention_mask", torch.ones_like(rows)).bool())
        return rows

    def _check(self, rows: Int[Tensor, "b l"], seen: Bool[Tensor, "b l"]) -> None:
        """Raises UserError if transformers' text tower would read these rows in another way than open_clip's.

        seen: its attention mask.
        """
        if self.kind == "siglip" and not seen.all():
            raise UserError(
                "the model's tokenizer has transformers mask the padding, without which SigLIP was trained; write "
                '"model_input_names": ["input_ids"] into its tokenizer_config.json'
            )
        if self.kind != "clip":
            return
        ends = rows == (rows.amax(1, keepdim=True) if self.end == 2 else self.end)
        if not ends.any(1).all() or not seen[ends.cumsum(1) - ends.int() == 0].all():
            raise UserError(
                f"the model's tokenizer gives no end of text (token {self.end}) that CLIP reads, or masks what stands "
                "before it; restore its files"
            )

    def _load(self) -> Any:
        if not self.files:
            raise UserError(
                "the model's folder holds no tokenizer; put transformers' tokenizer files there, and delete its "
                "card.json, which does not know them"
            )
        try:
            from transformers import AutoTokenizer  # pyright: ignore[reportMissingImports]
        except ImportError as e:
            raise UserError("this model's tokenizer needs transformers; pip install 'clipvet[hf]'") from e
        with tempfile.TemporaryDirectory() as folder:
            for name, held in self.files.items():
                (Path(folder) / name).write_bytes(held)
            if self.kind:
                io.write_json(Path(folder) / "config.json", {"model_type": self.kind})
            with _refused("cannot be loaded"):
                return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of these tokens; empty before the tokenizer was first used."""
        return self.loaded.decode(tokens, skip_special_tokens=True) if self.loaded else ""


@contextmanager
def _refused(what: str) -> Iterator[None]:
    """Turns whatever a tokenizer raises into a UserError."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as e:  # a damaged file can raise anything; a panic in Rust is not even an Exception
        raise UserError(f"the model's tokenizer {what} ({io.line(e)}); restore its files") from e


@functools.cache
def own(length: int) -> Any:
    """CLIP's own byte pairs, as transformers reads them. length: the context length, in tokens."""
    from clipvet.models.byte_pairs import Theirs

    return Theirs(length, SPECIAL, WORDS)


def made_of(files: Mapping[str, bytes], text_cfg: Mapping[str, Any], clips: bool) -> Any:
    """The tokenizer for these files: that of `own` if they describe exactly CLIP's byte pairs, else a `Foreign`.

    text_cfg: with context_length and vocab_size. clips: whether the model is a CLIP.
    """
    _check_sides(files, text_cfg["context_length"], clips)
    plain = own(text_cfg["context_length"])
    if clips and text_cfg["vocab_size"] == plain.vocab_size and _is_plain(files, plain):
        return plain
    return Foreign(files, text_cfg["context_length"])


def _check_sides(files: Mapping[str, bytes], length: int, clips: bool) -> None:
    """Raises UserError if transformers would cut or pad captions so that the text tower reads something else."""
    try:
        told = json.loads(files.get("tokenizer_config.json", b"{}"))
        most, side = told.get("model_max_length"), told.get("padding_side")
    except (ValueError, AttributeError, RecursionError):
        return  # whoever reads the file says what is wrong
    if isinstance(most, int | float) and most < length:
        raise UserError(
            f"tokenizer_config.json has captions cut to {most} of {length} tokens; set its model_max_length to {length}"
        )
    if clips and side == "left":
        raise UserError("tokenizer_config.json has captions padded at the left, where CLIP reads; remove padding_side")


def _is_plain(files: Mapping[str, bytes], plain: Any) -> bool:
    """Whether the files describe exactly what `plain`, CLIP's own tokenizer, does."""
    words = {k: v for k, v in plain.encoder.items() if v < plain.sot_token_id}
    merges = [" ".join(m) for m in plain.bpe_ranks]
    last = set(plain.all_special_ids)

    def same_words(vocab: Mapping[str, int]) -> bool:
        return {k: v for k, v in vocab.items() if v not in last} == words

    if "tokenizer.model" in files and "tokenizer.json" not in files:  # transformers takes it before vocab.json
        return False
    try:
        if "tokenizer.json" in files:
            told = json.loads(files["tokenizer.json"])
            if not same_words(told["model"]["vocab"]) or not _is_plain_model(told, merges):
                return False
        if "vocab.json" in files and not same_words(json.loads(files["vocab.json"])):
            return False
        if "merges.txt" in files:
            lines = files["merges.txt"].decode().splitlines()
            if [x for x in lines[1:] if x.strip()][: len(merges)] != merges:
                return False
        config, special = (
            json.loads(files.get(f, b"{}")) for f in ("tokenizer_config.json", "special_tokens_map.json")
        )
        if not all(_has_plain_roles(told, "tokenizer.json" in files) for told in (config, special)):
            return False
        if not all(_is_special(int(k), t) for k, t in config.get("added_tokens_decoder", {}).items()):
            return False
        return json.loads(files.get("added_tokens.json", b"{}")).items() <= SPECIAL.items()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _is_plain_model(told: Mapping[str, Any], merges: list[str]) -> bool:
    """Whether a tokenizer.json merges, prepares text and adds special tokens as CLIP's does."""
    own = [m if isinstance(m, str) else " ".join(m) for m in told["model"]["merges"]]
    options = {k: v for k, v in told["model"].items() if v and k not in ("vocab", "merges")}
    if own != merges or {"type": "BPE"} | options != MODEL:
        return False
    if not all(told.get(k) in known for k, known in STEPS.items()):
        return False
    return all(_is_special(t["id"], t) for t in told.get("added_tokens", []))


def _has_plain_roles(told: Mapping[str, Any], whole: bool) -> bool:
    """Whether a config gives special tokens the same roles as CLIP, and sets nothing else.

    whole: whether there is a tokenizer.json, which then says how special tokens are found.
    """
    if not whole and any(v.get("normalized") for k, v in told.items() if k in ROLES and isinstance(v, dict)):
        return False
    own = {k: v["content"] if isinstance(v, dict) else v for k, v in told.items() if k in ROLES and v}
    if not own.items() <= ROLES.items() or told.get("tokenizer_class") not in CLASSES:
        return False
    return not any(v for k, v in told.items() if k not in SETS_NOTHING)


def _is_special(number: int, token: Mapping[str, Any]) -> bool:
    """Whether this is one of CLIP's two special tokens, with its number and no odd options."""
    loose = any(token.get(k) for k in ("single_word", "lstrip", "rstrip", "normalized"))
    return SPECIAL.get(token["content"]) == number and not loose


def files_of(plain: Any) -> dict[str, bytes]:
    """The files, by name, with which transformers reads CLIP's byte pairs. plain: open_clip's tokenizer."""
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
