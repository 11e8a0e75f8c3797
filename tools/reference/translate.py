"""Tiny random Marian and T5 folders as transformers saves them, and what its `generate` makes of a few lines, for the tests of
crates/conjure/src/generate/translate.

Run: python tools/reference/translate.py [folder]
Writes CASE/, the model's folder, and CASE.json: lines with the ids that the tokenizer gives, and for several settings the ids
that are written and their scores, all lines in one batch with padding.
"""

import io
import json
import shutil
import sys
import tempfile
from pathlib import Path

import sentencepiece
import torch
import transformers
from transformers import MarianConfig, MarianMTModel, MarianTokenizer, T5Config, T5ForConditionalGeneration, T5Tokenizer

from text_tokenizers import SENTENCES

FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[2] / "crates/conjure/tests/fixtures/translate")
LINES = [
    "The lamp.",
    "The lighthouse keeper lit the lamp, and the ships found their way home.",
    "a cat",
    "It's late; we've seen the stars, they don't care.",
    "No.",
]
# The name says what the test asks for.
SETTINGS = {
    "greedy": dict(num_beams=1),
    "default": dict(),
    "first": dict(num_beams=3, length_penalty=2.0, early_stopping=True),
    "never": dict(num_beams=4, length_penalty=0.7, early_stopping="never"),
    "short": dict(num_beams=4, max_new_tokens=3),
}


# Found by trying: texts of different length, some of them ended by the model.
SEEDS = {"marian": 6, "t5": 18}


def pieces(lines, size, name, **more):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=size, model_type="unigram", character_coverage=0.995,
        num_threads=1, minloglevel=2, hard_vocab_limit=False, normalization_rule_name="identity", **more)
    Path(name).write_bytes(model.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return [processor.id_to_piece(i) for i in range(processor.get_piece_size())]


def enlarge(model, spread):
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "embed_positions" in name:
                continue
            noise = torch.randn_like(p)
            if name.endswith("bias"):
                p.copy_(0.1 * noise)  # Large ones would make all tokens alike.
            else:
                p.copy_(1 + 0.2 * noise if "norm" in name else spread * noise)


def marian(folder):
    with tempfile.TemporaryDirectory() as place:
        english, german = SENTENCES[:7], SENTENCES[7:11]
        tokens = ["</s>", "<unk>"]
        for lines, name in [(english * 3, "source.spm"), (german * 3, "target.spm")]:
            found = pieces(lines, 90, f"{place}/{name}")
            tokens += [t for t in found if t not in tokens and t not in ("<s>",)]
        tokens += [">>de<<", ">>fr<<", ">>zh_Hant<<", "<pad>"]
        Path(place, "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}, ensure_ascii=False))
        tokenizer = MarianTokenizer(f"{place}/source.spm", f"{place}/target.spm", f"{place}/vocab.json", source_lang="en",
                                    target_lang="mul")
        tokenizer.save_pretrained(folder)
    pad = len(tokens) - 1
    config = MarianConfig(vocab_size=len(tokens), d_model=24, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=32,
                          decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=32, activation_function="swish",
                          max_position_embeddings=64, scale_embedding=True, decoder_start_token_id=pad, pad_token_id=pad,
                          eos_token_id=0)
    torch.manual_seed(SEEDS["marian"])
    model = MarianMTModel(config).eval()
    enlarge(model, 0.7)
    with torch.no_grad():
        model.model.shared.weight *= 0.35  # Or each token would be written again and again.
        model.final_logits_bias.normal_(std=0.5)
        model.final_logits_bias[0, 0] = 2.5
        model.final_logits_bias[0, pad] = 3  # What is suppressed would be written.
    model.generation_config.update(num_beams=4, bad_words_ids=[[pad]], forced_eos_token_id=0, max_length=16, pad_token_id=pad,
                                   eos_token_id=0, decoder_start_token_id=pad, do_sample=False)
    return model, tokenizer, ">>fr<< ", "fr"


def t5(folder):
    with tempfile.TemporaryDirectory() as place:
        pieces(SENTENCES[:12] * 3, 180, f"{place}/spiece.model", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
        tokenizer = T5Tokenizer.from_pretrained(place, extra_ids=4)
        tokenizer.save_pretrained(folder)
    torch.manual_seed(SEEDS["t5"])
    task = {"early_stopping": False, "max_length": 14, "num_beams": 4, "prefix": "translate English to German: "}
    config = T5Config(vocab_size=len(tokenizer) + 4, d_model=24, d_kv=6, d_ff=32, num_layers=2, num_heads=4,
                      relative_attention_num_buckets=8, relative_attention_max_distance=12, decoder_start_token_id=0, tie_word_embeddings=False,
                      task_specific_params={"translation_en_to_de": task})
    model = T5ForConditionalGeneration(config).eval()
    model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))  # Else it is the table's.
    enlarge(model, 0.5)
    with torch.no_grad():
        model.lm_head.weight[1] *= 2.5  # Some texts end.
    model.generation_config.update(num_beams=4, max_length=14, do_sample=False)
    return model, tokenizer, "translate English to German: ", "de"


for case, make in {"marian": marian, "t5": t5}.items():
    folder = FOLDER / case
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model, tokenizer, prefix, to = make(folder)
    model.save_pretrained(folder)
    batch = tokenizer([prefix + line for line in LINES], return_tensors="pt", padding=True)
    sources = [ids[mask == 1].tolist() for ids, mask in zip(batch.input_ids, batch.attention_mask)]
    made = {}
    for name, settings in SETTINGS.items():
        with torch.no_grad():
            out = model.generate(**batch, **settings, return_dict_in_generate=True, output_scores=True)
        rows = []
        ends = model.generation_config.eos_token_id
        for ids in out.sequences[:, 1:].tolist():
            rows.append(ids[: ids.index(ends) + 1] if ends in ids else ids)
        scores = out.sequences_scores.tolist() if settings.get("num_beams", 4) > 1 else None
        made[name] = {"ids": rows, "scores": scores, "texts": tokenizer.batch_decode(rows, skip_special_tokens=True)}
        print(case, name, rows, scores)
    expected = {"made_by": f"tools/reference/translate.py, torch {torch.__version__}, transformers {transformers.__version__}",
                "to": to, "lines": LINES, "sources": sources, "made": made}
    (FOLDER / f"{case}.json").write_text(json.dumps(expected, ensure_ascii=False, indent=1))
