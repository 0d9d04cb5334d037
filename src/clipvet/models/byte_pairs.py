"""CLIP's byte pairs as transformers reads them, without transformers."""

import re
import unicodedata
from collections.abc import Mapping

import regex
from open_clip import SimpleTokenizer

SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # \s in transformers' regular expressions
PARTS = re.compile(r"\w+|\W+")  # of a special token that was written with capitals


class Theirs(SimpleTokenizer):
    """CLIP's byte pairs with transformers' own steps before them.

    open_clip repairs and unescapes a caption first (curly quotes, `&amp;`, full-width letters). transformers composes
    it (NFC), and takes the special tokens where they are written out. Rows are padded as by open_clip: CLIP does not
    look behind the end of text. Letters that are newer than Python's Unicode may be split in another way.
    """

    def __init__(self, context_length: int, special: Mapping[str, int], words: str):
        """special: the number of each special token. words: the regular expression of transformers' words."""
        super().__init__(context_length=context_length)
        marks = "|".join(map(re.escape, special))
        self.special, self.written = special, re.compile(f"({marks})")
        self.word = regex.compile(f"{marks}|" + words.replace(r"\s", SPACE))

    def encode(self, text: str) -> list[int]:
        """The tokens of a caption, without those around it."""
        out = []
        for part in self.written.split(text):
            if part in self.special:
                out.append(self.special[part])
                continue
            plain = "".join(c.lower() for c in unicodedata.normalize("NFC", part))  # one by one: no final sigma
            for found in self.word.findall(plain):
                for word in PARTS.findall(found) if found in self.special else (found,):
                    held = "".join(self.byte_encoder[b] for b in word.encode())
                    out += [self.encoder[piece] for piece in self.bpe(held).split(" ")]
        return out
