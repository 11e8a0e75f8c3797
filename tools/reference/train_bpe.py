"""Makes crates/conjure/tests/fixtures/train_bpe.json: captions in many scripts, the merges that byte-pair training (Sennrich et
al. 2016, algorithm 1, written naively) finds in them, and the ids that transformers' CLIPTokenizer gives with these merges to
other captions, in windows of 32 tokens. Normalisation and the split into words are those of CLIPTokenizer itself.

    python tools/reference/train_bpe.py

Made with transformers 5.23, tokenizers 0.23.3.
"""

import json
import pathlib
import tempfile
from collections import Counter

from transformers import CLIPTokenizer

OUT = pathlib.Path(__file__).resolve().parents[2] / "crates/conjure/tests/fixtures/train_bpe.json"
START, END = "<|startoftext|>", "<|endoftext|>"
VOCABULARY_SIZE, CONTEXT_LENGTH = 900, 32

NAMES = """
red heart|rotes Herz|cœur rouge|corazón rojo|красное сердце|赤いハート|红心|빨간색 하트|लाल दिल|หัวใจสีแดง|লাল হৃদয়|trái tim màu đỏ
blue heart|blaues Herz|cœur bleu|corazón azul|синее сердце|青いハート|蓝心|파란색 하트|नीला दिल|หัวใจสีน้ำเงิน|নীল হৃদয়|trái tim màu xanh dương
grinning cat|grinsende Katze|chat qui sourit|gato sonriendo|кот улыбается|にっこり笑う猫|大笑的猫|활짝 웃는 고양이|मुस्कुराती बिल्ली|แมวยิ้ม|দাঁত বের করা বিড়াল|mặt mèo cười tươi
crying cat|weinende Katze|chat qui pleure|gato llorando|кот плачет|泣き猫|哭泣的猫|우는 고양이|रोती हुई बिल्ली|แมวร้องไห้|কাঁদছে বিড়াল|mặt mèo khóc
full moon|Vollmond|pleine lune|luna llena|полная луна|満月|满月|보름달|पूर्ण चाँद|พระจันทร์เต็มดวง|পূর্ণ চাঁদ|trăng tròn
red apple|roter Apfel|pomme rouge|manzana roja|красное яблоко|赤りんご|红苹果|빨간 사과|लाल सेब|แอปเปิลแดง|লাল আপেল|táo đỏ
İSTANBUL|λευκή καρδιά|ἄλφα|לב אדום|قلب أحمر|გული|სიყვარული|Straße STRASSE|cafe\u0301 café|it's, don't, we'll|1920x1080 no. 2|((o)) !!! ...
"""
CAPTIONS = [name for line in NAMES.strip().splitlines() for name in line.split("|")]
CAPTIONS += [f"{name}, fluent style" for name in CAPTIONS[::7]] + [f"a {START} {name} {END}" for name in CAPTIONS[::11]]

LINES = [
    "",
    "a red heart, fluent style",
    "A  RED\tHEART\nBLUE   cat's",
    "rotes herz, liebe, gefühl",
    "cœur, cafe\u0301, CAFÉ",
    "красная луна, КОТ",
    "赤い月と猫、青いりんご",
    "红月亮，大笑的苹果",
    "빨간 고양이, 파란 달",
    "लाल बिल्ली, पूर्ण दिल",
    "แมวสีแดง หัวใจเต็มดวง",
    "নীল বিড়াল, লাল চাঁদ",
    "mèo xanh, tim đỏ",
    "قلب أزرق، קר אדום, λευκή γάτα, წითელი",
    f"x {END} y {START}z",
    "❤️🐱 ½ 42",
    "heart " * 40,
]


def byte_symbols():
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def open_tokenizer(vocabulary, merges):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        lines = "".join(f"{a} {b}\n" for a, b in merges)
        (folder / "merges.txt").write_text("#version: 0.2\n" + lines, encoding="utf-8")
        config = {"model_max_length": CONTEXT_LENGTH, "tokenizer_class": "CLIPTokenizer"}
        config |= {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        return CLIPTokenizer.from_pretrained(folder)


def train():
    tokens = byte_symbols()
    tokens += [s + "</w>" for s in tokens]
    ids = {token: i for i, token in enumerate(tokens)}
    backend = open_tokenizer(ids | {START: 512, END: 513}, []).backend_tokenizer
    words = Counter()
    for caption in CAPTIONS:
        normal = backend.normalizer.normalize_str(caption)
        words.update(w for w, _ in backend.pre_tokenizer.pre_tokenize_str(normal) if w not in (START, END))
    pieces = {w: [*w[:-1], w[-1] + "</w>"] for w in words}
    merges = []
    while len(ids) < VOCABULARY_SIZE - 2:
        pairs = Counter()
        for word, count in words.items():
            for pair in zip(pieces[word], pieces[word][1:]):
                pairs[pair] += count
        best = min(pairs, key=lambda pair: (-pairs[pair], ids[pair[0]], ids[pair[1]]))
        if pairs[best] < 2:
            break
        merges.append(best)
        ids.setdefault("".join(best), len(ids))
        for word, parts in pieces.items():
            merged, at = [], 0
            while at < len(parts):
                found = tuple(parts[at : at + 2]) == best
                merged.append("".join(best) if found else parts[at])
                at += 2 if found else 1
            pieces[word] = merged
    for mark in (START, END):
        ids[mark] = len(ids)
    return ids, merges


def main():
    vocabulary, merges = train()
    tokenizer = open_tokenizer(vocabulary, merges)
    windows = [tokenizer(line, padding="max_length", truncation=True).input_ids for line in LINES]
    assert {len(w) for w in windows} == {CONTEXT_LENGTH}
    fixture = {
        "captions": CAPTIONS,
        "vocabulary_size": VOCABULARY_SIZE,
        "context_length": CONTEXT_LENGTH,
        "vocabulary": vocabulary,
        "merges": [" ".join(pair) for pair in merges],
        "lines": LINES,
        "windows": windows,
    }
    OUT.write_text(json.dumps(fixture, ensure_ascii=False, indent=None) + "\n", encoding="utf-8")
    print(len(vocabulary), "tokens,", len(merges), "merges")


if __name__ == "__main__":
    main()
