"""BLEU and chrF of sacreBLEU, for the tests of crates/conjure/src/evaluate/translation.

Run: python tools/reference/translation_scores.py [file]
Writes lines as each tokenizer cuts them, and corpora with their scores; the version is in the file.
"""

import json
import random
import sys
from pathlib import Path

import sacrebleu
from sacrebleu.metrics import BLEU, CHRF

FILE = Path(sys.argv[1] if len(sys.argv) > 1 else
            Path(__file__).parents[2] / "crates/conjure/tests/fixtures/translation_scores.json")
TOKENIZERS = ["13a", "zh", "char", "none"]

random.seed(0)
LINES = [
    "", " ", "Hello, world!", "It costs $3,000.50 (about 2,800.75 euros) - or 10-15%...", "a.b,c .5, 5. x,y 1.2.3 ..,,..",
    "state-of-the-art 3-4 -5 6-", "&quot;x&quot; &amp;lt; &lt;b&gt; <skipped>y AT&T", "don't {brace} [b] ~ ^ _ ` | \\ / @ # * + = ? ;:",
    "tab\there\u00a0no-break\u2003em\u3000wide\x1cfile", "drapeau\u00a0: France", "猫の顔、笑う。", "他花了3,000.50元（约合2,800欧元）。",
    "旗子：法國 flag", "ธง: ฝรั่งเศส", "깃발: 프랑스, 웃는 얼굴", "Großes Ä-Ö, ½ €5 №7 ´ – — ‘x’ “y” … 🐱", "ends with comma,", ".starts", "٣,٤ ३.४",
]
PIECES = list("abcde .,-0123&<>/'\"()猫犬ธงé🐱") + ["cat", "dog", " the ", " a ", ", ", ". ", "3.5", "&amp;", "10-12 ", "狗", "の", "!"]


def messy(length):
    return "".join(random.choice(PIECES) for _ in range(length))


def noisy(line):
    words = line.split(" ")
    return " ".join(random.choice(["", w, w, w, w + "s", random.choice(words)]) for w in words)


def scores(hypotheses, references, tokenize):
    bleu = BLEU(tokenize=tokenize)
    score = bleu.corpus_score(hypotheses, references)
    chrf = CHRF()
    chars = chrf.corpus_score(hypotheses, references)
    return {
        "hypotheses": hypotheses, "references": references, "tokenizer": tokenize, "bleu": score.score,
        "precisions": score.precisions, "brevity_penalty": score.bp, "words": score.sys_len,
        "reference_words": score.ref_len, "bleu_signature": str(bleu.get_signature()),
        "chrf": chars.score, "chrf_signature": str(chrf.get_signature()),
    }


sentences = [messy(random.randint(5, 40)) for _ in range(24)]
english = ["the cat sat on the mat , and it was happy .", "a grinning face with big eyes", "flag: United Kingdom",
           "leftwards arrow from bar", "two women holding hands, one of them with a hat", "cat", "red heart"]
japanese = ["大きな目で笑う顔", "旗: イギリス", "手をつなぐ二人の女性、一人は帽子をかぶっている", "猫", "赤いハート"]
corpora = []
for tokenize in TOKENIZERS:
    for lines in [sentences, english, japanese]:
        corpora.append(scores([noisy(line) for line in lines], [lines], tokenize))
    corpora.append(scores([noisy(line) for line in english], [[noisy(line) for line in english] for _ in range(3)], tokenize))
corpora.append(scores(english, [english], "13a"))  # 100
corpora.append(scores(["cat", "dog"], [["cat", "dog"]], "13a"))  # no runs of four words: 0
corpora.append(scores(["x", "y"], [["cat", "dog"]], "13a"))  # nothing right
corpora.append(scores(["the cat sat on a mat"], [["the cat is on the mat"]], "13a"))  # smoothed
corpora.append(scores(["", ""], [["the cat", ""]], "13a"))
corpora.append(scores(["a b c d e f g h", ""], [["a b c d", "x"], ["a b c d e f g h i j k l", ""]], "none"))
corpora.append(scores(["abc", "ab"], [["a", "abcdefgh"], ["abcabc", "ab"]], "char"))
tokenized = {name: [BLEU(tokenize=name).tokenizer(line.rstrip()).split() for line in LINES + sentences] for name in TOKENIZERS}
made_by = f"tools/reference/translation_scores.py, sacrebleu {sacrebleu.__version__}"
FILE.write_text(json.dumps({"made_by": made_by, "lines": LINES + sentences, "tokenized": tokenized, "corpora": corpora},
                           ensure_ascii=False, indent=0) + "\n")
