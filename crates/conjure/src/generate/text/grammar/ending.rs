//! The shortest end of a text that a grammar describes.
//!
//! What each rule needs at least is known before there is any text: Dijkstra's algorithm on grammars (Knuth 1977).
//! Where a text must end, it is read again by a parser (Earley 1970) that knows of each part that it awaits how much
//! must follow.
//!
//! The matcher has all this too, but shows only which bytes may come next, and a search by these alone is lost in
//! `[a-z]+ "@"`. What is found here is a proposal, which the matcher has to accept.

use llguidance::api::ParserLimits;
use llguidance::earley::CGrammar;
use llguidance::earley::lexerspec::LexemeIdx;
use llguidance::earley::regexvec::{LexemeSet, MatchingLexemes, NextByte, RegexVec, StateID};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

/// Longest end that is looked for, in bytes.
const MAX_BYTES: usize = 1 << 15;
/// Most steps between states of regular expressions, once for the grammar and then for each end: of a few microseconds.
const MAX_STEPS: usize = 300_000;
/// What computing the states may cost, in `llguidance`'s unit of some 20 to 100 nanoseconds.
const FUEL: u64 = 1_000_000;
/// Most steps of the parser in a text.
const MAX_MOVES: usize = 1_000_000;
/// Bytes that are taken first where any would do.
const PLAIN: &[u8] = b"0 1-.,:";
/// No text comes to an end here.
const NEVER: u64 = u64::MAX;

/// What ends the texts of a grammar.
pub struct Endings {
    lexer: RegexVec,
    symbols: Vec<Symbol>,
    rules: Vec<Rule>,
    start: usize,
    /// Lexemes that may stand between others, such as spaces; of each class of lexemes.
    skipped: Vec<LexemeIdx>,
    classes: Vec<usize>,
    /// Whether a text may begin with them.
    begins_skipped: bool,
    /// What stands between lexemes that cannot follow each other directly, such as two words.
    between: Option<Vec<u8>>,
    /// A byte of each kind that the tokens can spell, with its price.
    bytes: Vec<(u8, u64)>,
    /// Whether some lexeme is too large to be searched.
    unsure: bool,
    /// Steps that may still be taken.
    steps: usize,
}

struct Symbol {
    /// Set if it is a terminal.
    lexeme: Option<LexemeIdx>,
    rules: Vec<usize>,
    may_be_empty: bool,
    /// The price of its shortest text.
    least: u64,
    shortest: Shortest,
}

/// Where the shortest text of a symbol comes from.
#[derive(Clone)]
enum Shortest {
    Empty,
    Word(Vec<u8>),
    Rule(usize),
}

struct Rule {
    of: usize,
    parts: Vec<usize>,
    /// The price of what follows after each number of parts.
    rest: Vec<u64>,
}

/// A rule of which `done` parts are there, the first beginning where row `origin` stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Item {
    rule: usize,
    done: usize,
    origin: usize,
}

/// What may come at one place between lexemes.
struct Row {
    /// Items by the symbol that they await.
    waiting: HashMap<usize, Vec<Item>>,
    /// What must follow at least after a symbol that begins here, and the item that awaits it; none at the end of all.
    after: HashMap<usize, (u64, Option<Item>)>,
    /// The lexer before the next lexeme.
    state: StateID,
}

/// What may come at each place between the lexemes of a text.
struct Chart {
    rows: Vec<Row>,
    moves: usize,
}

/// Why no end is told.
#[derive(Debug, PartialEq, Eq)]
pub enum NoWay {
    /// The text or the grammar is not understood here.
    Unknown,
    /// It is long, or would take much work.
    TooFar,
}

impl Endings {
    /// Prepares a grammar for tokens that can spell `bytes`, each at its price. `None` where it has what is
    /// not known here: parameters, token ids, limits of tokens, or texts that are hidden.
    pub fn new(grammar: &CGrammar, bytes: &[(u8, u64)]) -> Option<Self> {
        let spec = grammar.lexer_spec();
        if grammar.parametric() || spec.has_stop || spec.has_max_tokens || spec.special_token_rx.is_some() {
            return None;
        }
        let lexer = spec.to_regex_vec(&mut ParserLimits { initial_lexer_fuel: FUEL, ..Default::default() }).ok()?;
        let kind = |byte: u8| lexer.alpha().map(byte);
        let mut sizes = [0_usize; 256];
        bytes.iter().for_each(|&(byte, _)| sizes[kind(byte)] += 1);
        let place = |byte: u8| PLAIN.iter().position(|&plain| plain == byte).unwrap_or(PLAIN.len());
        let mut bytes = bytes.to_vec();
        // A byte of a large kind is in few texts of its own, with which it might go together.
        bytes.sort_by_key(|&(b, price)| (price, place(b), Reverse(sizes[kind(b)]), !b.is_ascii_graphic(), b));
        let mut kinds = HashSet::new();
        bytes.retain(|&(byte, _)| kinds.insert(kind(byte)));
        let mut endings = Self {
            lexer,
            symbols: Vec::new(),
            rules: Vec::new(),
            start: 0,
            skipped: spec.skip_by_class.clone(),
            classes: spec.lexemes.iter().map(|lexeme| lexeme.class().as_usize()).collect(),
            begins_skipped: spec.allow_initial_skip,
            between: None,
            bytes,
            unsure: false,
            steps: 0,
        };
        endings.read(grammar);
        endings.refill();
        endings.measure();
        Some(endings)
    }

    /// Whether it is certain that no text of the tokens matches.
    pub fn is_impossible(&self) -> bool {
        !self.unsure && self.symbols[self.start].least == NEVER
    }

    /// Bytes that bring a text to an end; `apart` puts what may be skipped between lexemes.
    ///
    /// # Errors
    /// None are known, or not with little work.
    pub fn after(&mut self, text: &[u8], apart: bool) -> Result<Vec<u8>, NoWay> {
        if apart && self.between.is_none() {
            return Err(NoWay::Unknown);
        }
        self.refill();
        let (rows, state, inside) = self.parse(text)?;
        let mut ends: HashMap<LexemeIdx, (u64, Item)> = HashMap::new();
        for (&symbol, items) in rows.last().into_iter().flat_map(|row| &row.waiting) {
            let Some(lexeme) = self.symbols[symbol].lexeme else { continue };
            for &item in items {
                let end = (self.price(&rows, item), item);
                if end.0 != NEVER && ends.get(&lexeme).is_none_or(|best| end < *best) {
                    ends.insert(lexeme, end);
                }
            }
        }
        let prices = ends.iter().map(|(&lexeme, end)| (lexeme, end.0)).collect();
        let (_, mut out, lexeme) = self.finish(state, inside, &prices)?.ok_or(NoWay::Unknown)?;
        let mut next = ends.get(&lexeme).map(|end| end.1);
        while let Some(item) = next {
            let rule = &self.rules[item.rule];
            self.spell(&rule.parts[item.done + 1..], apart, &mut out)?;
            next = rows[item.origin].after.get(&rule.of).and_then(|after| after.1);
        }
        Ok(out)
    }

    fn refill(&mut self) {
        self.steps = MAX_STEPS;
        self.lexer.set_fuel(FUEL);
    }

    /// Takes the symbols and rules that the start leads to.
    fn read(&mut self, grammar: &CGrammar) {
        let mut numbers = HashMap::from([(grammar.start(), 0)]);
        let mut found = vec![grammar.start()];
        let mut at = 0;
        while at < found.len() {
            let data = grammar.sym_data(found[at]);
            let mut rules = Vec::new();
            for &rule in &data.rules {
                let parts = grammar.rule_rhs(rule).0.iter().map(|&part| {
                    *numbers.entry(part).or_insert_with(|| {
                        found.push(part);
                        found.len() - 1
                    })
                });
                let parts: Vec<usize> = parts.collect();
                rules.push(self.rules.len());
                self.rules.push(Rule { of: at, rest: Vec::new(), parts });
            }
            self.symbols.push(Symbol {
                lexeme: data.lexeme,
                rules,
                may_be_empty: data.is_nullable,
                least: NEVER,
                shortest: Shortest::Empty,
            });
            at += 1;
        }
    }

    /// Finds the shortest text of every symbol, the shortest of all first: a rule is counted when all its parts are.
    fn measure(&mut self) {
        let mut uses: Vec<Vec<usize>> = vec![Vec::new(); self.symbols.len()];
        let mut open: Vec<(usize, u64)> = Vec::new();
        for (number, rule) in self.rules.iter().enumerate() {
            rule.parts.iter().for_each(|&part| uses[part].push(number));
            open.push((rule.parts.len(), 0));
        }
        let mut queue = BinaryHeap::new();
        let mut words: Vec<Option<Vec<u8>>> = vec![None; self.symbols.len()];
        for (number, word) in words.iter_mut().enumerate() {
            if self.symbols[number].may_be_empty {
                queue.push(Reverse((0, number, None)));
            } else if let Some(lexeme) = self.symbols[number].lexeme {
                let Some((price, found)) = self.word(lexeme) else { continue };
                queue.push(Reverse((price, number, None)));
                *word = Some(found);
            }
        }
        while let Some(Reverse((price, number, rule))) = queue.pop() {
            let symbol = &mut self.symbols[number];
            if symbol.least != NEVER {
                continue;
            }
            symbol.least = price;
            symbol.shortest = match (rule, words[number].take()) {
                (Some(rule), _) => Shortest::Rule(rule),
                (None, Some(word)) => Shortest::Word(word),
                (None, None) => Shortest::Empty,
            };
            for &user in &uses[number] {
                let (missing, sum) = &mut open[user];
                *missing -= 1;
                *sum = sum.saturating_add(price).min(NEVER - 1);
                if *missing == 0 {
                    queue.push(Reverse((*sum, self.rules[user].of, Some(user))));
                }
            }
        }
        for rule in &mut self.rules {
            let mut rest = vec![0; rule.parts.len() + 1];
            for (at, &part) in rule.parts.iter().enumerate().rev() {
                rest[at] = self.symbols[part].least.saturating_add(rest[at + 1]);
            }
            rule.rest = rest;
        }
        let skipped = self.skipped.first().copied();
        self.between = skipped.and_then(|lexeme| self.word(lexeme)).map(|found| found.1);
    }

    /// The shortest text of a lexeme, and its price.
    fn word(&mut self, lexeme: LexemeIdx) -> Option<(u64, Vec<u8>)> {
        let mut only = LexemeSet::new(self.classes.len());
        only.add(lexeme);
        let state = self.lexer.initial_state(&only);
        let found = self.finish(state, false, &HashMap::from([(lexeme, 0)]));
        self.unsure |= found.is_err();
        found.ok().flatten().map(|(price, word, _)| (price, word))
    }

    /// The price, the bytes and the lexeme of the shortest end from a state of the lexer, with the prices of what must
    /// follow each lexeme. `inside` a lexeme there may be no bytes.
    fn finish(
        &mut self,
        from: StateID,
        inside: bool,
        ends: &HashMap<LexemeIdx, u64>,
    ) -> Result<Option<(u64, Vec<u8>, LexemeIdx)>, NoWay> {
        let Some(&least) = ends.values().min() else { return Ok(None) };
        let mut ways = vec![(from, 0, 0)];
        let mut queue = BinaryHeap::from([Reverse((0_u64, 0_usize))]);
        let mut seen = HashSet::new();
        let mut best: Option<(u64, usize, LexemeIdx)> = None;
        while let Some(Reverse((price, at))) = queue.pop() {
            let price_of_all = price.saturating_add(least);
            if best.is_some_and(|best| best.0 <= price_of_all) {
                break;
            }
            if price_of_all > MAX_BYTES as u64 {
                return Err(NoWay::TooFar);
            }
            let state = ways[at].0;
            if !seen.insert(state) {
                continue;
            }
            let about = self.lexer.state_desc(state);
            let at_once = about.lazy_accepting.is_some();
            let ended = if at_once { &about.lazy_accepting } else { &about.greedy_accepting };
            if inside || at > 0 {
                for &lexeme in ended.as_slice() {
                    let Some(&more) = ends.get(&lexeme) else { continue };
                    let price = price.saturating_add(more);
                    if best.is_none_or(|best| price < best.0) {
                        best = Some((price, at, lexeme));
                    }
                }
            }
            if at_once {
                continue;
            }
            let forced = match self.lexer.next_byte(state) {
                NextByte::ForcedByte(byte) => Some(self.lexer.alpha().map(byte)),
                _ => None,
            };
            for &(byte, more) in &self.bytes {
                if forced.is_some_and(|kind| kind != self.lexer.alpha().map(byte)) {
                    continue;
                }
                self.steps = self.steps.checked_sub(1).ok_or(NoWay::TooFar)?;
                let next = self.lexer.transition(state, byte);
                if !next.is_dead() && !seen.contains(&next) {
                    queue.push(Reverse((price + more, ways.len())));
                    ways.push((next, at, byte));
                }
            }
            if self.lexer.has_error() {
                return Err(NoWay::TooFar);
            }
        }
        let Some((price, mut at, lexeme)) = best else { return Ok(None) };
        let mut bytes = Vec::new();
        while at > 0 {
            bytes.push(ways[at].2);
            at = ways[at].1;
        }
        bytes.reverse();
        Ok(Some((price, bytes, lexeme)))
    }

    /// Adds the shortest texts of these symbols.
    fn spell(&self, parts: &[usize], apart: bool, out: &mut Vec<u8>) -> Result<(), NoWay> {
        let mut stack: Vec<usize> = parts.iter().rev().copied().collect();
        while let Some(number) = stack.pop() {
            let symbol = &self.symbols[number];
            match &symbol.shortest {
                _ if symbol.least > MAX_BYTES as u64 || out.len() > MAX_BYTES => return Err(NoWay::TooFar),
                Shortest::Empty => {}
                Shortest::Word(word) => {
                    if let Some(between) = self.between.as_ref().filter(|_| apart) {
                        out.extend_from_slice(between);
                    }
                    out.extend_from_slice(word);
                }
                &Shortest::Rule(rule) => stack.extend(self.rules[rule].parts.iter().rev()),
            }
        }
        Ok(())
    }

    /// The rows of a text, the lexer's state behind it, and whether that is inside a lexeme.
    fn parse(&mut self, text: &[u8]) -> Result<(Vec<Row>, StateID, bool), NoWay> {
        let mut chart = Chart { rows: Vec::new(), moves: 0 };
        let first = self.symbols[self.start].rules.iter().map(|&rule| Item { rule, done: 0, origin: 0 }).collect();
        let start = self.push_row(&mut chart, first)?;
        let (mut state, mut inside) = (start, false);
        for &byte in text {
            let mut next = self.lexer.transition(state, byte);
            if next.is_dead() && inside {
                // The lexeme goes as far as it can.
                let ended = self.lexer.state_desc(state).greedy_accepting.clone();
                let start = self.scan(&mut chart, &ended)?;
                next = self.lexer.transition(start, byte);
            }
            if next.is_dead() {
                return Err(NoWay::Unknown);
            }
            (state, inside) = (next, true);
            let at_once = self.lexer.state_desc(state).lazy_accepting.clone();
            if at_once.is_some() {
                (state, inside) = (self.scan(&mut chart, &at_once)?, false);
            }
        }
        let ended = &self.lexer.state_desc(state).greedy_accepting;
        if inside && ended.as_slice().iter().any(|lexeme| self.skipped.contains(lexeme)) {
            (state, inside) = (chart.rows.last().map_or(start, |row| row.state), false);
        }
        Ok((chart.rows, state, inside))
    }

    /// Goes on by one of these lexemes; the lexer's state before the next.
    fn scan(&mut self, chart: &mut Chart, lexemes: &MatchingLexemes) -> Result<StateID, NoWay> {
        let row = chart.rows.last().ok_or(NoWay::Unknown)?;
        if lexemes.as_slice().iter().any(|lexeme| self.skipped.contains(lexeme)) {
            return Ok(row.state);
        }
        let mut next = Vec::new();
        for (&symbol, waiting) in &row.waiting {
            if self.symbols[symbol].lexeme.is_some_and(|lexeme| lexemes.contains(lexeme)) {
                next.extend(waiting.iter().map(|&item| Item { done: item.done + 1, ..item }));
            }
        }
        self.push_row(chart, next)
    }

    /// Adds a row of these items and all that follow from them; the lexer's state there.
    fn push_row(&mut self, chart: &mut Chart, mut items: Vec<Item>) -> Result<StateID, NoWay> {
        let rows = &mut chart.rows;
        let here = rows.len();
        let mut known: HashSet<Item> = items.iter().copied().collect();
        let mut waiting: HashMap<usize, Vec<Item>> = HashMap::new();
        let mut at = 0;
        while let Some(&item) = items.get(at) {
            at += 1;
            let rule = &self.rules[item.rule];
            let next = |item: &Item| Item { done: item.done + 1, ..*item };
            let found: Vec<Item> = match rule.parts.get(item.done) {
                Some(&part) => {
                    waiting.entry(part).or_default().push(item);
                    let symbol = &self.symbols[part];
                    let begun = symbol.rules.iter().map(|&rule| Item { rule, done: 0, origin: here });
                    begun.chain(symbol.may_be_empty.then(|| next(&item))).collect()
                }
                None if item.origin < here => {
                    rows[item.origin].waiting.get(&rule.of).into_iter().flatten().map(next).collect()
                }
                // What began here was empty, which is seen to where it is awaited.
                None => Vec::new(),
            };
            chart.moves += 1 + found.len();
            if chart.moves > MAX_MOVES {
                return Err(NoWay::TooFar);
            }
            items.extend(found.into_iter().filter(|&item| known.insert(item)));
        }
        if items.is_empty() {
            return Err(NoWay::Unknown);
        }
        let after = self.follow(rows, &waiting);
        let mut allowed = LexemeSet::new(self.classes.len());
        for lexeme in waiting.keys().filter_map(|&symbol| self.symbols[symbol].lexeme) {
            allowed.add(lexeme);
            if here > 0 || self.begins_skipped {
                allowed.add(self.skipped[self.classes[lexeme.as_usize()]]);
            }
        }
        let state = self.lexer.initial_state(&allowed);
        rows.push(Row { waiting, after, state });
        Ok(state)
    }

    /// What must follow at least after each symbol that begins at the next row, the least first.
    fn follow(&self, rows: &[Row], waiting: &HashMap<usize, Vec<Item>>) -> HashMap<usize, (u64, Option<Item>)> {
        let here = rows.len();
        let mut after = HashMap::new();
        let mut queue = BinaryHeap::new();
        if here == 0 {
            queue.push(Reverse((0, self.start, None)));
        }
        // Items that began here, by what they are part of: what follows them is found in this row.
        let mut later: HashMap<usize, Vec<(usize, Item)>> = HashMap::new();
        for (&symbol, items) in waiting.iter().filter(|(symbol, _)| self.symbols[**symbol].lexeme.is_none()) {
            for &item in items {
                if item.origin == here {
                    later.entry(self.rules[item.rule].of).or_default().push((symbol, item));
                } else {
                    queue.push(Reverse((self.price(rows, item), symbol, Some(item))));
                }
            }
        }
        while let Some(Reverse((price, symbol, item))) = queue.pop() {
            if price == NEVER || after.contains_key(&symbol) {
                continue;
            }
            after.insert(symbol, (price, item));
            for &(part, item) in later.get(&symbol).into_iter().flatten() {
                let price = price.saturating_add(self.rules[item.rule].rest[item.done + 1]);
                queue.push(Reverse((price, part, Some(item))));
            }
        }
        after
    }

    /// What must follow at least after the part that an item awaits.
    fn price(&self, rows: &[Row], item: Item) -> u64 {
        let rule = &self.rules[item.rule];
        let after = rows[item.origin].after.get(&rule.of).map_or(NEVER, |after| after.0);
        rule.rest[item.done + 1].saturating_add(after)
    }
}
