"""Views of captions: what EDA does to them, with and without synonyms, and what it leaves alone."""

import sys
from collections import Counter
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest

from clipvet.data import augment
from clipvet.data.augment import eda, variants, wordnet
from clipvet.errors import UserError
from clipvet.rng import Rng
from clipvet.training.plain import Plain
from clipvet.training.roclip import RoClip
from clipvet.training.safeclip import SafeClip, Stage

CAPTION = "a photo of a red car on moss near a small dog"
ALIKE = {"photo": ["exposure", "photograph"], "car": ["auto", "motor car"], "dog": ["hound"]}


def look_up(word):
    return ALIKE.get(word, [])


@pytest.fixture
def corpus(monkeypatch):
    """A WordNet of three synsets in the place of nltk's."""
    synsets = [("car", "auto", "motor-car"), ("car", "railway_car", "K9"), ("A", "angstrom")]
    found = SimpleNamespace(
        ensure_loaded=lambda: None,
        synsets=lambda w: [SimpleNamespace(lemma_names=lambda s=s: s) for s in synsets if w in map(str.lower, s)],
    )
    _install(monkeypatch, found)
    yield found
    wordnet.cache_clear()


def _install(monkeypatch, corpus):
    fake = ModuleType("nltk.corpus")
    fake.wordnet = corpus  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "nltk", ModuleType("nltk"))
    monkeypatch.setitem(sys.modules, "nltk.corpus", fake)
    wordnet.cache_clear()


UNHARMED = [
    "",
    " ",
    "star",
    "  star ",
    "星 和 环",
    "قطة على سجادة",
    "звезда на небе",
    "🚗 🌳  🚗",
    "12 34\t56",
    "- 3 - ?",
]


@pytest.mark.parametrize("synonyms", [None, look_up, lambda word: ["other"]])
@pytest.mark.parametrize("caption", UNHARMED)
def test_captions_without_latin_letters_or_of_one_word_pass_unharmed(caption, synonyms):
    assert {eda(caption, Rng(seed), 0.5, synonyms) for seed in range(20)} == {caption}


def test_one_word_in_ten_is_swapped_deleted_or_joined_or_replaced_by_a_synonym():
    words, kinds = CAPTION.split(), Counter()
    for seed in range(400):
        out = eda(CAPTION, Rng(seed), synonyms=look_up)
        assert out == eda(CAPTION, Rng(seed), synonyms=look_up), "not the rng alone decides"
        for known, others in ALIKE.items():
            for other in others:
                kinds["replaced"] += out == CAPTION.replace(known, other)
                at = [k for k in range(len(words) + 1) if " ".join([*words[:k], other, *words[k:]]) == out]
                kinds["inserted"] += bool(at)
        kinds["swapped"] += sorted(out.split()) == sorted(words)  # or a deletion that met no word
        kinds["deleted"] += len(out.split()) < len(words) and set(out.split()) <= set(words)
    assert sum(kinds.values()) == 400
    assert min(kinds[k] for k in ("replaced", "inserted", "swapped", "deleted")) > 50, kinds


def test_as_many_words_as_the_rate_says_are_replaced_each_once():
    text = " ".join(["car"] * 10)
    outs = [eda(text, Rng(seed), 0.3, lambda word: ["auto"]) for seed in range(60)]
    replaced = [out for out in outs if len(out.split()) == 10 and "auto" in out]
    assert {Counter(out.split())["auto"] for out in replaced} == {3}
    assert len(set(replaced)) > 5


def test_without_known_words_synonyms_change_nothing():
    for seed in range(50):
        assert eda(CAPTION, Rng(seed), synonyms=lambda word: []) == eda(CAPTION, Rng(seed))


def test_wordnet_gives_other_names_of_the_word_in_order(corpus):
    assert wordnet()("Car,") == ["auto", "motor car", "railway car"]
    assert wordnet()("auto") == ["car", "motor car"]
    assert wordnet()("a") == wordnet()("zebra") == wordnet()("k9") == wordnet()("车") == wordnet()("?") == []


def test_missing_nltk_or_corpus_is_one_sentence_that_names_the_fix(monkeypatch):
    fix = r"pip install 'clipvet\[wordnet\]' and python -m nltk.downloader wordnet"
    wordnet.cache_clear()
    monkeypatch.setitem(sys.modules, "nltk", None)
    monkeypatch.setitem(sys.modules, "nltk.corpus", None)
    with pytest.raises(UserError, match=fix):
        wordnet()

    def absent():
        raise LookupError("a page of advice")

    _install(monkeypatch, SimpleNamespace(ensure_loaded=absent))
    with pytest.raises(UserError, match=fix) as told:
        wordnet()
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("method", [Plain(eda=0.1), RoClip(), SafeClip()])
def test_trainings_ask_for_wordnet_only_when_told(method, clip, pairs, monkeypatch):
    def missing():
        raise UserError("no WordNet")

    monkeypatch.setattr(augment, "wordnet", missing)
    batch = pairs[:4]
    assert variants(batch, Rng(0), 0.1) == [eda(c, Rng(0).fork(int(i))) for c, i in zip(batch.captions, batch.ids)]
    with pytest.raises(UserError, match="no WordNet"):
        replace(method, synonyms=True, epochs=1, batch=16).train(clip, pairs.take(slice(32)), Rng(0))


def test_views_of_a_caption_differ_by_view_and_use_the_synonyms(pairs, monkeypatch):
    monkeypatch.setattr(augment, "wordnet", lambda: lambda word: [word.upper()])
    stage, batch, method = Stage([], None, Rng(0)), pairs[:32], SafeClip(synonyms=True)  # pyright: ignore
    one, two = method.views(batch, stage, Rng(0))[1]
    assert one == method.views(batch, stage, Rng(1))[1][0] != two
    assert any(c != c.lower() for c in one)
    assert all(c == c.lower() for c in replace(method, synonyms=False).views(batch, stage, Rng(0))[1][0])
