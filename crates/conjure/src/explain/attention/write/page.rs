//! The page: the files of `studio/attention` with the data inside, so that it needs nothing else.

use super::super::Explanation;
use crate::{Error, Result};

macro_rules! studio {
    ($file:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../studio/attention/", $file))
    };
}

const SHELL: &str = studio!("index.html");
const STYLE: &str = studio!("style.css");
/// Each after those that it imports.
const MODULES: [(&str, &str); 13] = [
    ("math.js", studio!("math.js")),
    ("data.js", studio!("data.js")),
    ("colour.js", studio!("colour.js")),
    ("dom.js", studio!("dom.js")),
    ("lines.js", studio!("lines.js")),
    ("heat.js", studio!("heat.js")),
    ("multiples.js", studio!("multiples.js")),
    ("steps.js", studio!("steps.js")),
    ("views.js", studio!("views.js")),
    ("pair.js", studio!("pair.js")),
    ("export.js", studio!("export.js")),
    ("controls.js", studio!("controls.js")),
    ("main.js", studio!("main.js")),
];

/// The explanation as one HTML file without any reference to another.
///
/// # Errors
/// A number that JSON has no word for.
pub fn html(explanation: &Explanation) -> Result<String> {
    let data = serde_json::to_string(explanation).map_err(|e| Error::failure(format!("cannot write JSON: {e}")))?;
    // Nothing in the data may end the element that it stands in.
    let data = data.replace('<', "\\u003c");
    let title = format!("Attention: {}", explanation.runs.first().map_or("", |run| run.text.as_str()));
    let mut page = String::with_capacity(data.len() + (256 << 10));
    let mut rest = SHELL;
    for (mark, content) in [
        ("{{title}}", escape(&title)),
        ("/*{{style}}*/", STYLE.to_owned()),
        ("{{data}}", data),
        ("/*{{script}}*/", script()),
    ] {
        let (before, after) =
            rest.split_once(mark).ok_or_else(|| Error::failure(format!("the page has no place for {mark}")))?;
        page.push_str(before);
        page.push_str(&content);
        rest = after;
    }
    page.push_str(rest);
    Ok(page)
}

/// All modules as one: a module's names are unique among all, so leaving `import` and `export` out joins them.
fn script() -> String {
    let mut script = String::new();
    for (name, text) in MODULES {
        script.push_str(&format!("// {name}\n"));
        for line in text.lines().filter(|line| !line.starts_with("import ")) {
            script.push_str(line.strip_prefix("export ").unwrap_or(line));
            script.push('\n');
        }
    }
    script
}

pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn modules_join_into_one() {
        let mut owners = BTreeMap::new();
        for (n, (name, text)) in MODULES.iter().enumerate() {
            assert!(text.lines().count() < 500, "{name} is too long");
            for line in text.lines() {
                if let Some(import) = line.strip_prefix("import ") {
                    let from = import.split("from './").nth(1).and_then(|rest| rest.strip_suffix("';"));
                    let from = from.unwrap_or_else(|| panic!("{name}: an import stands on one line: {line}"));
                    assert!(MODULES[..n].iter().any(|(earlier, _)| *earlier == from), "{name} comes before {from}");
                    assert!(!import.contains(" as "), "{name}: {line}");
                }
                assert!(!line.starts_with("export default") && !line.starts_with("export {"), "{name}: {line}");
                let declared = line.strip_prefix("export ").unwrap_or(line);
                let word = ["async function ", "function* ", "function ", "const ", "let ", "class "]
                    .iter()
                    .find_map(|kind| declared.strip_prefix(kind));
                let end = |c: char| !c.is_alphanumeric() && c != '_';
                if let Some(word) = word.and_then(|rest| rest.split(end).next()).filter(|word| !word.is_empty())
                    && let Some(other) = owners.insert(word.to_owned(), name)
                {
                    panic!("{other} and {name} both declare {word}");
                }
            }
        }
        let script = script();
        assert!(!script.contains("\nexport ") && !script.contains("\nimport ") && !script.contains("</script"));
    }

    #[test]
    fn the_page_refers_to_nothing_outside() {
        let whole = format!("{SHELL}{STYLE}{}", script());
        for outside in ["src=\"", "@import", "url(", "fetch(", "XMLHttpRequest", "WebSocket", "import("] {
            assert!(!whole.contains(outside), "{outside}");
        }
    }
}
