"""Makes crates/conjure/tests/fixtures/clip_tokenizer: a byte-pair vocabulary in CLIP's layout, trained on the few lines
below, and the ids that transformers' CLIPTokenizer gives to varied lines, with both paddings in use.

    python tools/reference/clip_tokenizer.py

Made with transformers 5.23, tokenizers 0.23.3.
"""

import json
import pathlib
import random
import tempfile
from collections import Counter

from transformers import CLIPTokenizer

OUT = pathlib.Path(__file__).resolve().parents[2] / "crates/conjure/tests/fixtures/clip_tokenizer"
START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = 300

CORPUS = """
a lighthouse on a cliff above the sea, the light of the evening, a photograph of the coast
the cat sits on the red chair and the dog sleeps under the table, a painting in oil
they don't know what we'll see, it's late and we've seen the stars, I'm here, you're there, he'd go
ein Leuchtturm über dem Meer, große Wellen, schöne Farben, café, naïve, façade
маяк над морем, кошка сидит на стуле, красивый закат
海の上の灯台、夜の猫 灯台 海 猫
1920 1080 512 768 !!! ... ?! ,, --
""".lower()

LINES = [
    "",
    " ",
    "a lighthouse above the sea",
    "A  LIGHTHOUSE\tABOVE\nTHE   SEA",
    "Don't, WE'LL, it's, I'M, you're, 'tis, rock 'n' roll",
    "café cafe\u0301 Åse A\u030ase \u212b",
    "GROSSE STRASSE große Straße ẞ",
    "İstanbul ISPARTA ıspanak ǅ",
    "Маяк НАД морем",
    "夜の灯台、猫と海",
    "등대 바다 قطة बिल्ली แมว",
    "🐱👩‍👩‍👧🇩🇪 ❤️",
    "1920x1080, 50mm f/1.8, ½ ² Ⅷ ٣",
    "!!! wow!? ... (((a))) [b] {c} #tag @me _x_",
    "x <|endoftext|> y <|startoftext|>z <|ENDOFTEXT|>",
    "&amp; <b>bold</b> &lt;",
    "no\u00a0break\u3000wide\u200bzero\x85next\u2028line\x00nul",
    "ﬁne ﷺ \ufeff \ufffd",
    "light " * 100,
]


def byte_alphabet():
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    hidden = [b for b in range(256) if b not in printable]
    symbols = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(hidden)}
    return symbols


def train(symbols):
    """The most frequent pair is merged first; ties go to the pair that sorts first."""
    words = Counter(CORPUS.split())
    pieces = {w: [symbols[b] for b in w.encode()] for w in words}
    for parts in pieces.values():
        parts[-1] += "</w>"
    merges = []
    while len(merges) < MERGES:
        pairs = Counter()
        for word, count in words.items():
            for pair in zip(pieces[word], pieces[word][1:]):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word, parts in pieces.items():
            merged = []
            for part in parts:
                if merged and (merged[-1], part) == best:
                    merged[-1] += part
                else:
                    merged.append(part)
            pieces[word] = merged
    return merges


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    symbols = byte_alphabet()
    merges = train(symbols)
    tokens = [*symbols.values(), *(s + "</w>" for s in symbols.values()), *map("".join, merges), START, END]
    # Two ways to merge into one token would leave a hole in the ids.
    tokens = list(dict.fromkeys(tokens))
    vocabulary = {token: i for i, token in enumerate(tokens)}
    random.seed(0)
    words = CORPUS.split() + " ".join(LINES[:-1]).split()
    lines = LINES + [" ".join(random.choices(words, k=random.randint(1, 20))) for _ in range(60)]
    cases = {"lines": lines}
    for padding in (END, "!"):
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
            text = "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges)
            (folder / "merges.txt").write_text(text, encoding="utf-8")
            config = {
                "bos_token": START,
                "eos_token": END,
                "model_max_length": 77,
                "pad_token": padding,
                "tokenizer_class": "CLIPTokenizer",
                "unk_token": END,
            }
            (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))
            tokenizer = CLIPTokenizer.from_pretrained(folder)
            cases[padding] = [
                tokenizer(line, padding="max_length", truncation=True, max_length=77).input_ids for line in lines
            ]
            if padding == END:
                for file in folder.iterdir():
                    (OUT / file.name).write_bytes(file.read_bytes())
    (OUT / "cases.json").write_text(json.dumps(cases, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
