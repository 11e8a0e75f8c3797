//! The odds as one page that needs nothing else.

use super::Odds;
use conjure_core::{Error, Result};
use serde_json::json;

const TEMPLATE: &str = include_str!("page.html");

/// The page, with its data, style and program inside. `model` is what it says about where the odds come from.
///
/// # Errors
/// None that a user can cause.
pub fn html(odds: &Odds, model: &str) -> Result<String> {
    let data = json!({ "model": model, "tokens": odds.tokens });
    let text = serde_json::to_string(&data).map_err(|e| Error::failure(format!("cannot write JSON: {e}")))?;
    // Nothing in a text may end the element that holds it.
    Ok(TEMPLATE.replacen("__DATA__", &text.replace('<', "\\u003c"), 1))
}

#[cfg(test)]
mod tests {
    use super::super::TokenOdds;
    use super::*;

    #[test]
    fn a_text_cannot_break_out_of_the_page() {
        let token = |text: &str| TokenOdds { id: 1, text: text.into(), logprob: None, rank: None, top: Vec::new() };
        let odds =
            Odds { tokens: vec![token("</script><script>alert(1)</script>"), token("__DATA__ & \"")], unheard: None };
        let page = html(&odds, "<model>").unwrap();
        assert_eq!(page.matches("</script>").count(), 2, "the data's and the program's");
        assert!(page.contains("\\u003c/script>\\u003cscript>alert(1)"));
        for banned in ["http://", "https://", "src=", "@import"] {
            assert!(!page.contains(banned), "the page needs no network: {banned}");
        }
        let data = page.split("type=\"application/json\">").nth(1).unwrap().split("</script>").next().unwrap();
        let data: serde_json::Value = serde_json::from_str(data).unwrap();
        assert_eq!(data["tokens"][1]["text"], "__DATA__ & \"");
        assert_eq!(data["model"], "<model>");
    }
}
