"""WikiText's articles, and their text as it was before WikiText took it apart into words.

The files have spaces around every word and mark (` , `, ` @-@ `), as no text that a model was trained on. The rules
that undo this follow lm-evaluation-harness (lm_eval/tasks/wikitext/preprocess_wikitext.py, 0.4), except that

- ` N ` stays: it becomes ` 1 ` in Penn Treebank, where it stands for a number; here it is a letter (`N @-@ O bond`);
- quotes are paired within a paragraph, not over a whole article, where a single one without its partner would move
  the spaces of all that follow. Apostrophes inside words (`don 't`, `O 'Brien`) are joined and not paired, and a
  plural's (`the ships ' guns`) is told from a quote's (`as ' armour '`);
- marks lose their space before another mark and at the end of a line, too.
"""

import re
from collections.abc import Callable
from pathlib import Path

from sih.errors import SihError

# ` = Title = `. After it, an article begins with words; a formula's ` = 1 rad / s and k = ` goes on with a number.
_TITLE = re.compile(r"(?m)^ = [^=\n].* = $(?=\s*[^\s\d])")


def _single_quotes(found: re.Match[str]) -> str:
    return f"{found['plural']}'" if found["plural"] else f"'{found['quoted']}'"


_RULES: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r" @([-,.])@ ", r"\1"),  # two @-@ part, 9 @,@ 500, 12 @.@ 1
    (r" ° ", "°"),
    (r" ([:;.!?,])(?=[\s:;.!?,\"')\]}]|$)", r"\1"),
    (r"([(\[{]) +", r"\1"),
    (r" +([)\]}])", r"\1"),
    (r"(?<=\w) '(?=[^\W\d_])", "'"),
    (
        r"(?P<plural>\b(?!(?:as|has|his|is|its|this|was)\b)\w+s) '(?=[\s:;.!?,)\]]|$)"
        r"|(?<![^\s(\[\"])' (?P<quoted>[^\n]+?) '(?=[\s:;.!?,)\]\"-]|$)",
        _single_quotes,
    ),
    (r'" *([^"\n]*?) *"', r'"\1"'),
    (r"(?<==) (?==)", ""),  # = = Life = =
    (r" *\n *", "\n"),
]


def articles(text: str) -> list[str]:
    """The articles of a file of WikiText, each from its title on; empty when the text has no titles."""
    starts = [found.start() for found in _TITLE.finditer(text)]
    return [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)] if starts else []


def detokenised(text: str) -> str:
    """The text with its natural spacing."""
    for pattern, replacement in _RULES:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    return text


def read(path: Path) -> list[str]:
    """The articles of a file of raw WikiText, detokenised.

    Raises:
        SihError: unreadable, or without articles.
    """
    try:
        found = articles(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SihError(f"{path}: cannot be read ({error}); expected raw WikiText in UTF-8") from None
    if not found:
        raise SihError(f"{path}: no ` = Title = ` in it; expected raw WikiText")
    return [detokenised(article) for article in found]
