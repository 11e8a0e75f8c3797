"""Shows that transformers opens what `conjure train` exports of the objective `translation`, and writes the same.

Run: python tools/reference/translator_export.py EXPORT CONJURE LANGUAGE [LINES]
EXPORT is the export folder of a run, CONJURE the program, LANGUAGE a target language, LINES a file of lines. Compares the ids that
both read, and those that both write by the likeliest token and with four beams; exit code 1 where they differ.
"""

import json
import subprocess
import sys
from pathlib import Path

import torch
from transformers import MarianMTModel, PreTrainedTokenizerFast

export, program, language = sys.argv[1:4]
lines = Path(sys.argv[4]).read_text().splitlines() if len(sys.argv) > 4 else ["red cat", "a house by the sea", "moon", "Übergröße 猫"]
model, loading = MarianMTModel.from_pretrained(export, dtype=torch.float32, output_loading_info=True)
print({kind: list(keys) for kind, keys in loading.items() if keys} or "every parameter is in the file")
model.eval()
tokenizer = PreTrainedTokenizerFast.from_pretrained(export)
batch = tokenizer([f">>{language}<< {line}" for line in lines], return_tensors="pt", padding=True, return_token_type_ids=False)
end = model.generation_config.eos_token_id
differ = False
for beams in (1, 4):
    with torch.no_grad():
        out = model.generate(**batch, num_beams=beams, return_dict_in_generate=True, output_scores=True)
    command = [program, "translate", "\n".join(lines), "--to", language, "--model", export, "--beams", str(beams), "--json"]
    made = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["translations"]
    for n, (theirs, ours) in enumerate(zip(out.sequences[:, 1:].tolist(), made)):
        theirs = theirs[: theirs.index(end) + 1] if end in theirs else theirs
        read = batch.input_ids[n][batch.attention_mask[n] == 1].tolist()
        text = tokenizer.decode(theirs, skip_special_tokens=True)
        same = read == ours["source_tokens"] and theirs == ours["tokens"] and text == ours["text"]
        far = abs(out.sequences_scores[n].item() - ours["score"]) if beams > 1 else 0.0
        print(f"{beams} beams, {lines[n]!r}: {len(theirs)} tokens, {text!r}, {'the same' if same else 'DIFFERENT'}, score off by {far:.1e}")
        differ |= not same or far > 1e-4
sys.exit(differ)
