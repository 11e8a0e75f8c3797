//! What BLEU takes for a word.

use super::is_space;

/// How lines are cut, as sacreBLEU's tokenizers of the same names do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tokenizer {
    /// mteval-v13a's: words, with punctuation apart. For languages that put spaces between words.
    #[default]
    Mteval13a,
    /// Chinese characters each apart, the rest as in 13a.
    Chinese,
    /// Every character apart. For Japanese, Thai and others without spaces, where sacreBLEU itself would want a dictionary of
    /// words (`ja-mecab`): its numbers with that are not comparable.
    Characters,
    /// At spaces only.
    None,
}

impl Tokenizer {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Mteval13a, Self::Chinese, Self::Characters, Self::None];

    /// The name in signatures.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mteval13a => "13a",
            Self::Chinese => "zh",
            Self::Characters => "char",
            Self::None => "none",
        }
    }

    /// The tokenizer of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|tokenizer| tokenizer.name() == name)
    }

    /// What to use for a language, a BCP 47 tag.
    pub fn for_language(tag: &str) -> Self {
        match tag.split('-').next().unwrap_or_default() {
            "zh" | "yue" => Self::Chinese,
            "ja" | "th" | "lo" | "km" | "my" => Self::Characters,
            _ => Self::Mteval13a,
        }
    }

    /// The words of a line.
    pub fn words(self, line: &str) -> Vec<String> {
        let line = line.trim_end_matches(is_space);
        match self {
            Self::Mteval13a => {
                let line = line.replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
                // In this order: "&amp;lt;" becomes "<".
                let line = line.replace("&quot;", "\"").replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">");
                split(&punctuation_apart(&format!(" {line} ")))
            }
            Self::Chinese => {
                let line = line.trim_matches(is_space);
                let apart: String =
                    line.chars().flat_map(|c| if is_chinese(c) { vec![' ', c, ' '] } else { vec![c] }).collect();
                split(&punctuation_apart(&apart))
            }
            Self::Characters => line.chars().filter(|c| !is_space(*c)).map(String::from).collect(),
            Self::None => split(line),
        }
    }
}

fn split(line: &str) -> Vec<String> {
    line.split(is_space).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// sacreBLEU's four substitutions, one after the other, as its regular expressions have them.
fn punctuation_apart(line: &str) -> String {
    let digit = |c: char| c.is_ascii_digit();
    let stop = |c: char| matches!(c, '.' | ',');
    // ([\{-\~\[-\` -\&\(-\+\:-\@\/])
    let mark = |c: char| matches!(c, '{'..='~' | '['..='`' | ' '..='&' | '('..='+' | ':'..='@' | '/');
    let line: Vec<char> = line.chars().flat_map(|c| if mark(c) { vec![' ', c, ' '] } else { vec![c] }).collect();
    // ([^0-9])([\.,]) gives "\1 \2 "
    let line = in_pairs(&line, |a, b| (!digit(a) && stop(b)).then(|| vec![a, ' ', b, ' ']));
    // ([\.,])([^0-9]) gives " \1 \2"
    let line = in_pairs(&line, |a, b| (stop(a) && !digit(b)).then(|| vec![' ', a, ' ', b]));
    // ([0-9])(-) gives "\1 \2 "
    in_pairs(&line, |a, b| (digit(a) && b == '-').then(|| vec![a, ' ', b, ' '])).into_iter().collect()
}

/// Replaces pairs of neighbours, from left to right, none overlapping.
fn in_pairs(line: &[char], replaced: impl Fn(char, char) -> Option<Vec<char>>) -> Vec<char> {
    let mut out = Vec::with_capacity(line.len() * 2);
    let mut rest = line;
    while let [a, after @ ..] = rest {
        let pair = after.first().and_then(|b| replaced(*a, *b));
        rest = if pair.is_some() { &after[1..] } else { after };
        out.extend(pair.unwrap_or_else(|| vec![*a]));
    }
    out
}

/// As sacreBLEU has it: two of its ranges are written `\u20000` and `\u2f800`, which Python reads as U+2000 and U+2F80 with a
/// further digit. So U+2001 to U+2A6D, general punctuation and symbols,
/// count as Chinese, and U+20000 on do not.
fn is_chinese(c: char) -> bool {
    matches!(c, '\u{3400}'..='\u{4db5}' | '\u{4e00}'..='\u{9fa5}' | '\u{9fa6}'..='\u{9fbb}' | '\u{f900}'..='\u{fa2d}'
        | '\u{fa30}'..='\u{fa6a}' | '\u{fa70}'..='\u{fad9}' | '\u{2001}'..='\u{2a6d}' | '\u{2f81}'..='\u{2fa1}'
        | '\u{ff00}'..='\u{ffef}' | '\u{2e80}'..='\u{2eff}' | '\u{3000}'..='\u{303f}' | '\u{31c0}'..='\u{31ef}'
        | '\u{2f00}'..='\u{2fdf}' | '\u{2ff0}'..='\u{2fff}' | '\u{3100}'..='\u{312f}' | '\u{31a0}'..='\u{31bf}'
        | '\u{fe10}'..='\u{fe1f}' | '\u{fe30}'..='\u{fe4f}' | '\u{3200}'..='\u{33ff}')
}
