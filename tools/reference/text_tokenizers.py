"""Makes crates/conjure/tests/fixtures/text_tokenizers: small tokenizers trained on the text below, and what the reference
implementations make of about 200 lines in many languages.

    python tools/reference/text_tokenizers.py

`unigram.model` and `bpe.model` are SentencePiece models and `sentencepiece` gives their ids and texts; `marian.json` is
`unigram.model` as a translator's, by transformers; `byte_level/` and
`word_piece/` are tokenizer.json files and `tokenizers` gives theirs; `templates` are conversations rendered by Jinja2 as
transformers sets it up. Made with sentencepiece 0.2.3, tokenizers 0.23.3, transformers 5.23.

(The file is not called tokenizers.py: Python would then take it for the package.)
"""

import io
import json
import pathlib
import random
import tempfile

import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import MarianTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

OUT = pathlib.Path(__file__).resolve().parents[2] / "crates/conjure/tests/fixtures/text_tokenizers"

SENTENCES = """
The lighthouse keeper lit the lamp, and the ships found their way home.
It's late; we've seen the stars, they don't care, I'd say so, you'll see!
The animal didn't cross the street because it was too tired.
The animal didn't cross the street because it was too wide.
A model reads tokens and predicts the next one, again and again.
def add(a, b): return a + b  # the sum of two numbers
for (int i = 0; i < 100; i++) { total += values[i] * 3.14159; }
In 1969 people walked on the Moon; 384,400 km away; 12 walked there by 1972.
Der Leuchtturm steht auf der Klippe über dem Meer, große Wellen schlagen dagegen.
Straßenbahnhaltestelle, Donaudampfschifffahrt, Geschwindigkeitsbegrenzung und Übergrößenträger.
Le gardien du phare a allumé la lampe et les bateaux sont rentrés à l'aube, c'était déjà l'été.
El farero encendió la lámpara y los barcos volvieron a casa; ¿dónde está el niño? ¡Mañana!
O faroleiro acendeu a lâmpada e os navios encontraram o caminho para casa, não é?
Il guardiano del faro accese la lampada e le navi tornarono a casa; perché così tardi?
De vuurtorenwachter stak de lamp aan en de schepen vonden de weg naar huis.
Fyrvaktaren tände lampan och båtarna hittade hem över sjön, på åtta öar.
Majakanvartija sytytti lampun, ja laivat löysivät kotiin yön pimeydessä.
A világítótorony őre meggyújtotta a lámpát, és a hajók hazataláltak.
Latarnik zapalił lampę i statki odnalazły drogę do domu; zażółć gęślą jaźń.
Strážce majáku rozsvítil lampu a lodě našly cestu domů; příliš žluťoučký kůň.
Deniz feneri bekçisi lambayı yaktı ve gemiler evin yolunu buldu; İstanbul'da ışık.
Người gác hải đăng thắp đèn và những con tàu tìm được đường về nhà.
Смотритель маяка зажёг лампу, и корабли нашли дорогу домой; ещё вчера шёл снег.
Доглядач маяка запалив лампу, і кораблі знайшли шлях додому; їжак їсть яблуко.
Ο φύλακας του φάρου άναψε τη λάμπα και τα πλοία βρήκαν τον δρόμο για το σπίτι.
שומר המגדלור הדליק את המנורה והספינות מצאו את דרכן הביתה.
أشعل حارس المنارة المصباح ووجدت السفن طريقها إلى البيت في الليل.
प्रकाशस्तंभ के रखवाले ने दीपक जलाया और जहाज़ घर का रास्ता पा गए।
বাতিঘরের রক্ষী প্রদীপ জ্বালালেন এবং জাহাজগুলি বাড়ির পথ খুঁজে পেল।
ผู้ดูแลประภาคารจุดตะเกียง และเรือก็พบทางกลับบ้าน
灯台守がランプをともすと、船は家に帰る道を見つけた。夜の海は静かだった。
灯塔看守人点亮了灯，船只找到了回家的路。海上的夜晚很安静。
燈塔看守人點亮了燈，船隻找到了回家的路。
등대지기가 등불을 켜자 배들이 집으로 가는 길을 찾았다.
შუქურის მცველმა აანთო ლამპა და გემებმა სახლისკენ გზა იპოვეს.
Փարոսի պահապանը վառեց լամպը, և նավերը գտան տան ճանապարհը։
"""
SENTENCES = SENTENCES.strip().splitlines()

ODD = [
    "",
    " ",
    "  two  spaces   and three    four ",
    "\ttab\nnew line\r\ncarriage\n\n\nthree",
    "trailing newline\n",
    "▁already▁escaped▁ ▁",
    "ﬁne ﬂow ½ ² Ⅷ ™ № ｆｕｌｌ　ｗｉｄｔｈ ＡＢＣ１２３",
    "cafe\u0301 café A\u030ase \u212b o\u0302\u0323 q\u0307\u0323",
    "\u1112\u1161\u11ab\u1100\u1173\u11af 한글 \u3131\u314f",
    "no\u00a0break\u3000wide\u200bzero\x85next\u2028line\ufeff\ufffd",
    "nul\x00 bell\x07 del\x7f",
    "🐱👩‍👩‍👧🇩🇪 ❤️ 👍🏽 🏴󠁧󠁢󠁳󠁣󠁴󠁿",
    "𐎀𐏈 𓀀𓂀 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𠜎𠜱",
    "aaaa aaaaa aaaaaa ababab abababa bbbbbbb",
    "mmm mmmm nnnn nnnnn oooooo ......... !!!!!!!! ---------",
    "<s>a</s> <unk> <pad> <0x41> <mask> <sep>",
    "a<sep>b <sep> c  <sep>  d<sep><sep>",
    "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n",
    "x<keep me>y <keep me> z",
    "1234567890 3.14 1,000,000 ٣٤٥ १२३ 二〇二六",
    "https://example.org/a/b?c=d&e=f#g user@example.org",
    "snake_case camelCase PascalCase SCREAMING_CASE kebab-case",
    "    if x:\n        return [y for y in z]\n",
    "'s 't 're 've 'm 'll 'd 'S 'T ’s don’t O'Neill rock'n'roll",
    "ÀÉÎÕÜ àéîõü ÆØÅ æøå ẞ ß İ ı ǅ ſ",
    "[CLS] a [SEP] [MASK] [UNK]",
]


def lines():
    random.seed(7)
    words = " ".join(SENTENCES).split()
    mixed = [" ".join(random.choices(words, k=random.randint(1, 14))) for _ in range(70)]
    glued = ["".join(random.choices(words, k=random.randint(2, 4))) for _ in range(25)]
    characters = sorted(set("".join(SENTENCES + ODD)))
    noise = ["".join(random.choices(characters, k=random.randint(3, 20))) for _ in range(40)]
    return ODD + SENTENCES + mixed + glued + noise


def rules():
    """A character map with what real ones have: one to one, one to many, many to one, to nothing, overlapping entries."""
    table = {
        "ﬁ": "fi", "ﬂ": "fl", "½": "1⁄2", "²": "2", "™": "TM", "\u212b": "\u00c5", "\u3000": " ", "\u00a0": " ", "\t": " ", "\n": " ",
        "\r": " ", "\u200b": "", "\ufeff": "", "\x7f": "", "e\u0301": "é", "A\u030a": "Å", "o\u0302": "ô", "o\u0302\u0323": "ộ",
        "q\u0307": "q", "\u1112\u1161\u11ab": "한", "\u1112\u1161": "하",
    }
    table |= {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
    return "".join(
        " ".join(f"{ord(c):X}" for c in source) + "\t" + " ".join(f"{ord(c):X}" for c in target) + "\n"
        for source, target in sorted(table.items())
    )


def train_sentencepiece(kind, **options):
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 3 + ["aaaa aaa aa abab mmm"] * 4),
        model_writer=written,
        model_type=kind,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
        **options,
    )
    return written.getvalue()


def sentencepiece_cases(model, texts):
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    ids = [processor.encode(text) for text in texts]
    random.seed(11)
    size = processor.get_piece_size()
    drawn = [[random.randrange(size) for _ in range(random.randint(1, 12))] for _ in range(60)]
    return {
        "ids": ids,
        "pieces": [processor.encode(text, out_type=str) for text in texts[:60]],
        "decoded": [processor.decode(row) for row in ids],
        "drawn": drawn,
        "drawn_decoded": [processor.decode(row) for row in drawn],
    }


def byte_level():
    tokenizer = tokenizers.Tokenizer(models.BPE())
    pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    tokenizer.add_tokens([tokenizers.AddedToken("<keep me>", normalized=False, rstrip=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", pair="<|endoftext|> $A $B:1", special_tokens=[("<|endoftext|>", 0)]
    )
    return tokenizer


def word_piece():
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        SENTENCES * 3, trainers.WordPieceTrainer(vocab_size=700, special_tokens=marks, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(mark, tokenizer.token_to_id(mark)) for mark in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def json_cases(tokenizer, texts):
    ids = [tokenizer.encode(text, add_special_tokens=True).ids for text in texts]
    return {
        "ids": ids,
        "decoded": [tokenizer.decode(row, skip_special_tokens=True) for row in ids],
        "shown": [tokenizer.decode(row, skip_special_tokens=False) for row in ids],
    }


def marian_cases(model, texts):
    """One model for both languages, and ids that are not its own: some pieces are missing, as in trimmed vocabularies."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = [processor.id_to_piece(n) for n in range(processor.get_piece_size())]
    tokens = ["</s>", "<unk>", *sorted(set(pieces[7:]) - set(pieces[50:90]))[::-1], ">>fra<<", ">>deu<<", "<pad>"]
    vocabulary = {token: n for n, token in enumerate(tokens)}
    extra = [">>fra<< the lamp", "the >>deu<< lamp", ">>xyz<< the lamp\n>>fra<<again", "the</s>lamp <pad> x", ">><< a << b >> c"]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for name in ("source.spm", "target.spm"):
            (folder / name).write_bytes(model)
        (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        tokenizer = MarianTokenizer.from_pretrained(folder)
        lines = extra + [text for text in texts if "<" not in text]
        ids = [tokenizer(text).input_ids for text in lines]
        decoded = [tokenizer.decode(row, skip_special_tokens=True) for row in ids]
    return {"vocabulary": vocabulary, "lines": lines[:80], "ids": ids[:80], "decoded": decoded[:80]}


# Templates in the manner of the known families, written for this test.
TEMPLATES = {
    "chatml": """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}""",
    "llama3": """{{- bos_token }}
{%- set loop_messages = messages %}
{%- if loop_messages[0]['role'] == 'system' %}
    {%- set system_message = loop_messages[0]['content'] | trim %}
    {%- set loop_messages = loop_messages[1:] %}
{%- else %}
    {%- set system_message = '' %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}
{{- 'Today: ' + date_string + '\n\n' }}
{{- system_message + '<|eot_id|>' }}
{%- for message in loop_messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
""",
    "gemma": """{{ bos_token }}
{%- set ns = namespace(first='') -%}
{%- if messages[0]['role'] == 'system' -%}
    {%- set ns.first = messages[0]['content'] + '\n\n' -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (ns.first if loop.first else '') }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}{{ item['text'] }}{%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\n' }}
{%- endif -%}
""",
    "mistral": """{%- set system_message = '' %}
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"].strip() + '\n\n' %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role not in ["user", "assistant"] %}
        {{- raise_exception("Only user and assistant roles are supported, got " + message.role | tojson) }}
    {%- endif %}
    {%- if message.role == "user" %}
        {%- if loop.last %}
            {{- "[INST] " + system_message + message.content + " [/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + " [/INST]" }}
        {%- endif %}
    {%- else %}
        {%- if message.content.startswith("<think>") and "</think>" in message.content %}
            {%- set content = message.content.split("</think>")[-1].lstrip() %}
        {%- else %}
            {%- set content = message.content %}
        {%- endif %}
        {%- if content == "stop" %}{% break %}{% endif %}
        {{- " " + content.rstrip() + eos_token }}
    {%- endif %}
{%- endfor %}
""",
    "blocks": """
{% for message in messages %}
    {% if message.role == 'user' %}
  {{ message | tojson }} {{ loop.index }}{{ "," if not loop.last }}
    {% else %}
{% generation %}{{ message.content.upper() }}{% endgeneration %}

    {% endif %}
{% endfor %}
{%- macro turn(role, text='-') -%}[{{ role }}: {{ text }}]{%- endmacro %}
{{ turn('a') }}{{ turn(role='b', text=messages | map(attribute='role') | join('/')) }}
{{ {'b': 1, 'a': [true, none, 2.5, "é<&'"]} | tojson }}
{{ [1, {"k": []}] | tojson(indent=2) }}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ messages[-1].content[:5] ~ '...' }}
{{ missing }}{{ tools is none }} {{ 'x' in 'xyz' }} {{ 7 // 2 }} {{ messages | length > 1 and 'many' or 'one' }}
""",
}
CONVERSATIONS = [
    [("user", "  Hi & <hello>, \"you\" there? ")],
    [("system", " Be brief. "), ("user", "Wie geht's?"), ("assistant", "<think>hm</think>\n\nGut. \n"), ("user", "夜 🐱\nok")],
    [("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "stop"), ("user", "four")],
]


def template_cases():
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    out = []
    for name, template in TEMPLATES.items():
        for turns in CONVERSATIONS:
            for prompt in (False, True):
                messages = [{"role": role, "content": content} for role, content in turns]
                # transformers tells today's date; without the function the template's own day is the expected one.
                source = template.replace("strftime_now is defined", "false")
                rendered, _ = render_jinja_template([messages], chat_template=source, add_generation_prompt=prompt, **tokens)
                out.append({"name": name, "messages": messages, "prompt": prompt, "text": rendered[0]})
    return {"sources": TEMPLATES, "cases": out}


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    texts = lines()
    table = OUT / "rules.tsv"
    table.write_text(rules(), encoding="utf-8")
    unigram = train_sentencepiece(
        "unigram",
        vocab_size=900,
        normalization_rule_tsv=str(table),
        control_symbols=["<pad>", "<mask>"],
        user_defined_symbols=["<sep>", "é", "▁▁"],
        character_coverage=0.995,
    )
    table.unlink()
    bpe = train_sentencepiece(
        "bpe",
        vocab_size=1000,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        user_defined_symbols=["<sep>", "\n\n"],
        character_coverage=0.995,
    )
    (OUT / "unigram.model").write_bytes(unigram)
    (OUT / "bpe.model").write_bytes(bpe)
    cases = {"lines": texts}
    cases["unigram"] = sentencepiece_cases(unigram, texts)
    cases["bpe"] = sentencepiece_cases(bpe, texts)
    write(OUT / "marian.json", marian_cases(unigram, texts))
    for name, tokenizer in (("byte_level", byte_level()), ("word_piece", word_piece())):
        folder = OUT / name
        folder.mkdir(exist_ok=True)
        tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
        cases[name] = json_cases(tokenizer, texts)
    settings = {
        "bos_token": "<|im_start|>",
        "eos_token": {"content": "<|im_end|>", "special": True},
        "chat_template": [{"name": "other", "template": "{{ 1 }}"}, {"name": "default", "template": TEMPLATES["chatml"]}],
    }
    write(OUT / "byte_level/tokenizer_config.json", settings)
    write(OUT / "byte_level/generation_config.json", {"eos_token_id": [2, 0]})
    write(OUT / "cases.json", cases)
    write(OUT / "templates.json", template_cases())
    for file in sorted(OUT.rglob("*.*")):
        print(file.stat().st_size, file.relative_to(OUT))


if __name__ == "__main__":
    main()
