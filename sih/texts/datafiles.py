"""Real data files: a local path, or fetched once at a pinned commit with the sha256 checked.

`python -m sih.texts.datafiles` fetches all of them (`make data`).
"""

import os
from dataclasses import dataclass
from pathlib import Path

from sih.checkpoints.files import cache_folder, sha256_of
from sih.errors import SihError


@dataclass(frozen=True)
class DataFile:
    url: str
    sha256: str
    licence: str


_GRAPHWRITER = "https://raw.githubusercontent.com/rikdz/GraphWriter/f228420aa48697dfb7a1ced3a62f955031664ed3"
_EWT = "https://raw.githubusercontent.com/UniversalDependencies/UD_English-EWT/15d613d8447b3478787d4c278730a1e48a945efb"
_TYLOQUANT = "https://raw.githubusercontent.com/Tylogi/TyloQuant/7989d038b13ca737da11a95fb90e77ae059f33c0"
_PYTHIA = "https://raw.githubusercontent.com/EleutherAI/pythia/a19eecb807ec2c79a39ebf18108816e6ffffc1d5"

FILES: dict[str, DataFile] = {
    "agenda-test.tsv": DataFile(
        f"{_GRAPHWRITER}/data/preprocessed.test.tsv",
        "0fd6b6ac1d1c9343f91eb617102a2b8a1850d0eded966b17e396942b57979553",
        "none stated; cite Koncel-Kedziorski et al. 2019",
    ),
    "en_ewt-ud-dev.conllu": DataFile(
        f"{_EWT}/en_ewt-ud-dev.conllu",
        "531a54ff90d6ab12201c5a50c3e78e6ddac4de69abc4bce5d275d3cd29efe2b6",
        "CC BY-SA 4.0",
    ),
    "en_ewt-ud-test.conllu": DataFile(
        f"{_EWT}/en_ewt-ud-test.conllu",
        "e266e515a0a7547657ed3d90d9ba46487d6bd251f27ad4269d4e8a427c8555cd",
        "CC BY-SA 4.0",
    ),
    "wikitext2-raw-test.txt": DataFile(  # a copy; the set's home is Salesforce/wikitext on the Hub, as Parquet
        f"{_TYLOQUANT}/data/wikitext-2-raw/wiki.test.raw",
        "4f3e427e4aff23acff917a8a51aeae21bf12832256e26914c8fc250dcef4103c",
        "CC BY-SA 3.0",
    ),
    "pythia-tokenizer.json": DataFile(  # for the tests: a sweep reads the tokenizer beside the weights
        f"{_PYTHIA}/utils/20B_tokenizer.json",
        "56ac4821e129d2c520fdaba60abd920fa852ada51b45c0dd52bbb6bd8c985ade",
        "Apache-2.0",
    ),
}


def located(name: str, path: str | None = None) -> Path:
    """A data file on this disk: `path` if given, else the named file from `SIH_DATA`, the cache or its source.

    A file found by name must have the pinned sha256; a file given by path may be your own.

    Raises:
        SihError: no such file, another sha256, or nothing could be fetched.
    """
    if path is not None:
        if not Path(path).is_file():
            raise SihError(
                f"{path}: no such data file; expected a file like {name}, or leave the path null to fetch it"
            )
        return Path(path)
    wanted = FILES[name]
    for folder in filter(None, [os.environ.get("SIH_DATA"), str(cache_folder() / "data")]):
        candidate = Path(folder) / name
        if candidate.is_file():
            found = sha256_of(candidate)
            if found != wanted.sha256:
                raise SihError(
                    f"{candidate}: sha256 {found[:12]}..., expected {wanted.sha256[:12]}...; "
                    f"delete it to fetch {name} again, or name your own file with its path option"
                )
            return candidate
    import pooch  # takes a third of a second, so only where it is needed

    try:
        pooch.retrieve(wanted.url, f"sha256:{wanted.sha256}", fname=name, path=cache_folder() / "data")
    except ValueError as error:  # pooch: the download's hash does not match; it keeps nothing
        raise SihError(f"{name}: {wanted.url} does not serve the pinned contents ({error})") from None
    except OSError as error:  # requests' errors are OSErrors: no network, no such page, no room
        raise SihError(
            f"{name} is not on this machine and could not be fetched from {wanted.url} ({type(error).__name__}). "
            f"With a network: make data. Without: put the file into a folder and set SIH_DATA to it."
        ) from None
    return cache_folder() / "data" / name


def read_lines(file: Path) -> list[str]:
    """Lines of a UTF-8 file, split only at newlines; other separators are text. Raises SihError."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SihError(f"{file}: cannot be read ({error}); expected a text file in UTF-8") from None
    return lines[:-1] if lines[-1] == "" else lines


def main() -> int:
    """Fetch every data file; 1 when one could not be fetched."""
    failed = 0
    for name, file in FILES.items():
        try:
            print(f"{name}: {located(name)} (licence: {file.licence})")
        except SihError as error:
            print(f"{name}: {error}")
            failed = 1
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
