//! Stop strings, found also where they begin in one token and end in another.

/// Lets text through up to the first stop string. What may be the beginning of one is held back until it is known.
#[derive(Clone, Debug, Default)]
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
    hit: Option<usize>,
}

impl StopStrings {
    /// Looks for these strings, none of them empty.
    pub fn new(stops: &[String]) -> Self {
        Self { stops: stops.iter().filter(|stop| !stop.is_empty()).cloned().collect(), held: String::new(), hit: None }
    }

    /// Takes the next piece of text: what of the text so far may be shown now. After a hit nothing comes any more.
    pub fn push(&mut self, piece: &str) -> String {
        if self.hit.is_some() {
            return String::new();
        }
        self.held.push_str(piece);
        let found = self.stops.iter().enumerate().filter_map(|(i, stop)| self.held.find(stop).map(|at| (at, i))).min();
        if let Some((at, stop)) = found {
            self.hit = Some(stop);
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        // The longest end of the text that is the beginning of a stop string.
        let starts = self.held.char_indices().map(|(at, _)| at);
        let mut undecided = starts.skip_while(|&at| !self.stops.iter().any(|stop| stop.starts_with(&self.held[at..])));
        let at = undecided.next().unwrap_or(self.held.len());
        let rest = self.held.split_off(at);
        std::mem::replace(&mut self.held, rest)
    }

    /// The stop string that ended the text.
    pub fn hit(&self) -> Option<&str> {
        self.hit.map(|i| self.stops[i].as_str())
    }

    /// The text has ended otherwise: what was held back.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, Option<String>, String) {
        let mut stop = StopStrings::new(&stops.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
        let shown = pieces.iter().map(|piece| stop.push(piece)).collect();
        let hit = stop.hit().map(str::to_owned);
        (shown, hit, stop.finish())
    }

    #[test]
    fn a_stop_string_in_several_tokens_is_found_and_never_shown() {
        let (shown, hit, rest) = run(&["</s>"], &["one <", "/", "s", "> two", " three"]);
        assert_eq!(shown, ["one ", "", "", "", ""]);
        assert_eq!((hit.as_deref(), rest.as_str()), (Some("</s>"), ""));
    }

    #[test]
    fn what_only_looked_like_one_is_shown_when_that_is_known() {
        let (shown, hit, rest) = run(&["</s>"], &["a <", "/b> <", "<", "/"]);
        assert_eq!(shown, ["a ", "</b> ", "<", ""]);
        assert_eq!((hit, rest.as_str()), (None, "</"));
    }

    #[test]
    fn the_first_of_several_counts_and_pieces_of_letters_stay_whole() {
        let (shown, hit, _) = run(&["zwei", "ä€"], &["grün ä", "€ zwei"]);
        assert_eq!(shown, ["grün ", ""]);
        assert_eq!(hit.as_deref(), Some("ä€"));
        let (shown, hit, _) = run(&["\n"], &["a\nb\nc"]);
        assert_eq!((shown, hit.as_deref()), (vec!["a".to_owned()], Some("\n")));
        let (shown, hit, rest) = run(&[], &["a", "b"]);
        assert_eq!((shown, hit, rest), (vec!["a".to_owned(), "b".to_owned()], None, String::new()));
    }

    #[test]
    fn a_beginning_within_a_beginning_is_found() {
        let (shown, hit, _) = run(&["aab"], &["a", "a", "a", "b"]);
        assert_eq!(shown, ["", "", "a", ""]);
        assert_eq!(hit.as_deref(), Some("aab"));
    }
}
