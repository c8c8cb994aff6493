"""Own texts: spans, dependencies, and spaCy at the boundary."""

import json
import sys
from types import SimpleNamespace

import pytest
from conftest import composed

from sih.errors import SihError
from sih.texts import custom
from sih.texts.relations import Exclusions, Triplet

TEXT = "The old dog chased a red ball."
ROW = {"text": TEXT, "triplets": [{"relation": "object", "subject": [12, 18], "object": [25, 29]}]}


def read(path, tokenizer):
    config = composed("model=pythia-70m", "relations=custom", f"relations.custom.path={path}").relations.custom
    out = Exclusions()
    return custom.read(path, config, tokenizer, 256, out), out


def words(example, triplet, tokenizer):
    return tuple(tokenizer.decode([example.token_ids[i]]).strip() for i in (triplet.subject, triplet.object))


def test_spans_become_token_positions(tmp_path, pythia_tokenizer):
    file = tmp_path / "own.jsonl"
    file.write_text(json.dumps(ROW) + "\n\n" + json.dumps({**ROW, "document": "second"}) + "\n")
    (first, second), out = read(file, pythia_tokenizer)
    assert (first.document, second.document, first.source) == ("line-00001", "second", "custom")
    assert words(first, first.triplets[0], pythia_tokenizer) == ("chased", "ball")
    assert out.rows() == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("not json", "line 2: not an object of this form; expected"),
        (json.dumps({"text": TEXT}), "line 2: not an object of this form; expected"),
        (json.dumps({**ROW, "text": "short"}), r"line 2: object has the span \[12, 18\] of 5 characters"),
        (json.dumps(ROW).replace("[12, 18]", "[18, 12]"), r"line 2: object has the span \[18, 12\]"),
        (json.dumps(ROW).replace("[12, 18]", "[12]"), r"line 2: object has the span \[12\]"),
    ],
)
def test_malformed_spans_name_file_and_line(tmp_path, pythia_tokenizer, line, says):
    file = tmp_path / "own.jsonl"
    file.write_text(json.dumps(ROW) + "\n" + line + "\n")
    with pytest.raises(SihError, match=rf"own\.jsonl, {says}"):
        read(file, pythia_tokenizer)


def test_own_dependencies(tmp_path, pythia_tokenizer):
    file = tmp_path / "own.conllu"
    rows = [("Dogs", 2, "nsubj"), ("chase", 0, "root"), ("red", 4, "amod"), ("balls", 2, "obj")]
    file.write_text("".join(f"{i}\t{w}\t_\t_\t_\t_\t{h}\t{d}\t_\t_\n" for i, (w, h, d) in enumerate(rows, 1)) + "\n")
    (example,), _ = read(file, pythia_tokenizer)
    assert example.source == "custom"
    found = {t.relation: words(example, t, pythia_tokenizer) for t in example.triplets}
    assert found == {"object": ("chase", "balls"), "modifier": ("balls", "red")}  # "Dogs" is two tokens


def test_plain_text_without_spacy_says_what_to_install(tmp_path, pythia_tokenizer, monkeypatch):
    file = tmp_path / "own.txt"
    file.write_text(TEXT)
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(SihError, match=r"spaCy is not installed: pip install spacy"):
        read(file, pythia_tokenizer)


def test_plain_text_without_the_model_says_what_to_download(tmp_path, pythia_tokenizer, monkeypatch):
    def load(name):
        raise OSError("[E050] Can't find model")

    file = tmp_path / "own.txt"
    file.write_text(TEXT)
    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=load))
    with pytest.raises(
        SihError, match="model en_core_web_sm is not installed: python -m spacy download en_core_web_sm"
    ):
        read(file, pythia_tokenizer)


def test_plain_text_is_read_as_spacy_parses_it(tmp_path, pythia_tokenizer, monkeypatch):
    """A stand-in for spaCy with its own attributes: sentences of words with idx, text, dep_ and head."""

    class Word(SimpleNamespace):
        pass

    def parse(text):
        sentences = []
        for start in (0, text.index("A cat")):
            piece = text[start:].split(".")[0] + "."
            found = [Word(text=w.strip("."), idx=start + piece.index(w), dep_="dep") for w in piece.split()]
            verb = found[-2]
            verb.dep_, found[1].dep_, found[-1].dep_ = "ROOT", "nsubj", "dobj"
            for word in found:
                word.head = verb
            sentences.append(type("Span", (list,), {"start_char": start, "text": piece})(found))
        return SimpleNamespace(sents=sentences)

    file = tmp_path / "own.txt"
    file.write_text("The dog chased balls. A cat drank milk.\n")
    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=lambda name: parse))
    (first, second), _ = read(file, pythia_tokenizer)
    assert first.document == second.document == "line-00001"
    assert words(first, first.triplets[0], pythia_tokenizer) == ("chased", "dog")
    assert words(second, second.triplets[1], pythia_tokenizer) == ("drank", "milk")
    assert first.triplets[0] == Triplet("subject", first.triplets[0].subject, first.triplets[0].object)
