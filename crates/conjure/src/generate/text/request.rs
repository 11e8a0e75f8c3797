//! What can be asked of a language model, and what is refused before work begins.

use super::grammar::Grammar;
use conjure_core::sampling::text::{
    Chain, FrequencyPenalty, MinP, PresencePenalty, RepetitionPenalty, Temperature, TopK, TopP, Typical,
};
use conjure_core::{Error, Result};

/// Most alternatives told for a token.
pub const MAX_LOGPROBS: usize = 100;
/// Most stop strings.
pub const MAX_STOPS: usize = 64;
/// Most beams.
pub const MAX_BEAMS: usize = 64;
/// Longest prompt in bytes: more than any model's context holds.
pub const MAX_PROMPT: usize = 16 << 20;

/// What the text begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Words, which the model's tokenizer cuts into tokens; special tokens that the model expects are added.
    Text(String),
    /// The tokens themselves; nothing is added.
    Ids(Vec<u32>),
}

/// How a token is chosen. The default is what llama.cpp's programs do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 takes the likeliest token, of equally likely ones that with the lowest id.
    pub temperature: f32,
    /// Choose among so many of the likeliest tokens; `None` is all.
    pub top_k: Option<usize>,
    /// Choose among the likeliest tokens that together have this probability, over 0 to 1.
    pub top_p: f32,
    /// Leave out tokens that are less likely than this share of the likeliest, 0 to 1.
    pub min_p: f32,
    /// Choose among tokens of typical information that together have this probability, over 0 to 1.
    pub typical: f32,
    /// Divides the scores of tokens that occurred, 0.01 to 100; 1 changes nothing.
    pub repetition: f32,
    /// Subtracted from the scores of tokens that the answer has, -100 to 100.
    pub presence: f32,
    /// Subtracted for each time that the answer has the token, -100 to 100.
    pub frequency: f32,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: Some(40),
            top_p: 0.95,
            min_p: 0.05,
            typical: 1.0,
            repetition: 1.0,
            presence: 0.0,
            frequency: 0.0,
        }
    }
}

impl Sampling {
    /// The likeliest token every time.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Whether the likeliest token is taken.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// The filters in transformers' order, those that change nothing left out. Where the likeliest token is taken only
    /// penalties matter.
    ///
    /// # Errors
    /// A value that makes no sense, by name.
    pub fn filters(&self) -> Result<Chain> {
        // Every value is checked, also one that does not matter here.
        let repetition = RepetitionPenalty::new(self.repetition)?;
        let (presence, frequency) = (PresencePenalty::new(self.presence)?, FrequencyPenalty::new(self.frequency)?);
        let (top_p, min_p, typical) = (TopP::new(self.top_p)?, MinP::new(self.min_p)?, Typical::new(self.typical)?);
        let top_k = self.top_k.map(TopK::new).transpose()?;
        let temperature = if self.is_greedy() { None } else { Some(Temperature::new(self.temperature)?) };
        let mut chain = Chain::default();
        if self.repetition != 1.0 {
            chain = chain.then(repetition);
        }
        if self.presence != 0.0 {
            chain = chain.then(presence);
        }
        if self.frequency != 0.0 {
            chain = chain.then(frequency);
        }
        let Some(temperature) = temperature else { return Ok(chain) };
        if self.temperature != 1.0 {
            chain = chain.then(temperature);
        }
        if let Some(top_k) = top_k {
            chain = chain.then(top_k);
        }
        if self.top_p < 1.0 {
            chain = chain.then(top_p);
        }
        if self.min_p > 0.0 {
            chain = chain.then(min_p);
        }
        if self.typical < 1.0 {
            chain = chain.then(typical);
        }
        Ok(chain)
    }
}

/// Search for the likeliest whole text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Beams {
    /// How many texts are followed at once; 1 is the same as taking the likeliest token.
    pub width: usize,
    /// Texts compete by `log p / length ^ penalty` (Wu et al. 2016, without their offset of 5): 0 favours short ones, over
    /// 1 long ones.
    pub length_penalty: f64,
}

/// A request for text.
#[derive(Clone, Debug)]
pub struct TextRequest {
    /// What the text begins with.
    pub prompt: Prompt,
    /// Most tokens to generate; `None` is until the model ends the text or its context is full.
    pub max_tokens: Option<usize>,
    /// How a token is chosen.
    pub sampling: Sampling,
    /// The same seed and settings make the same text.
    pub seed: u64,
    /// The text ends before the first of these.
    pub stop: Vec<String>,
    /// Search instead of sampling.
    pub beams: Option<Beams>,
    /// Tell each token's probability, and so many alternatives.
    pub logprobs: Option<usize>,
    /// What the text has to match, whole.
    pub grammar: Option<Grammar>,
}

impl TextRequest {
    /// A request with this prompt and the defaults.
    pub fn new(prompt: Prompt) -> Self {
        Self {
            prompt,
            max_tokens: None,
            sampling: Sampling::default(),
            seed: 0,
            stop: Vec::new(),
            beams: None,
            logprobs: None,
            grammar: None,
        }
    }

    /// Refuses what no model could do. What a particular model cannot do is refused when it is known.
    ///
    /// # Errors
    /// Names the value and the remedy.
    pub fn validate(&self) -> Result<()> {
        match &self.prompt {
            Prompt::Text(text) if text.len() > MAX_PROMPT => {
                return Err(Error::request(format!("the prompt has {} bytes, more than {MAX_PROMPT}", text.len()))
                    .with_help("no model reads so much at once; give it a part"));
            }
            Prompt::Ids(ids) if ids.is_empty() => {
                return Err(Error::request("there are no token ids to begin with").with_help("give one or more"));
            }
            _ => {}
        }
        self.sampling.filters()?;
        if self.max_tokens == Some(0) {
            return Err(Error::request("max tokens 0 leaves nothing to do").with_help("name 1 or more"));
        }
        if self.stop.iter().any(String::is_empty) {
            return Err(Error::request("a stop string is empty").with_help("it would end the text before it begins"));
        }
        if self.stop.len() > MAX_STOPS {
            return Err(Error::request(format!("{} stop strings, more than {MAX_STOPS}", self.stop.len()))
                .with_help("name fewer"));
        }
        if let Some(count) = self.logprobs.filter(|&count| count > MAX_LOGPROBS) {
            return Err(Error::request(format!("{count} alternatives for each token, more than {MAX_LOGPROBS}"))
                .with_help("5 are usual"));
        }
        if let Some(beams) = self.beams {
            if !(1..=MAX_BEAMS).contains(&beams.width) {
                return Err(Error::request(format!("beams {} is outside 1 to {MAX_BEAMS}", beams.width))
                    .with_help("4 are usual"));
            }
            if !beams.length_penalty.is_finite() {
                return Err(Error::request(format!("length penalty {} is no number", beams.length_penalty))
                    .with_help("1 is usual; 0 favours short texts"));
            }
            if self.grammar.is_some() || self.logprobs.is_some() {
                return Err(Error::request("beam search takes no grammar and tells no single tokens' probabilities")
                    .with_help("leave out --beams"));
            }
        }
        if self.grammar.is_some() && !self.stop.is_empty() {
            return Err(Error::request("a stop string could end the text before it matches the grammar")
                .with_help("leave out --stop; the grammar says where the text ends"));
        }
        Ok(())
    }
}

/// How many tokens may follow a prompt of `prompt` tokens in a context of `context`.
///
/// # Errors
/// The prompt is empty or does not fit, or what is asked for does not fit behind it. Nothing is ever cut off silently.
pub fn room(prompt: usize, max_tokens: Option<usize>, context: usize) -> Result<usize> {
    if prompt == 0 {
        return Err(Error::request("the prompt has no tokens, and this model has none to begin with")
            .with_help("say a word to begin with"));
    }
    if prompt >= context {
        return Err(Error::request(format!("the prompt has {prompt} tokens, the model reads {context} at once"))
            .with_help(format!(
                "shorten it to {} tokens or fewer, or choose a model with a longer context",
                context.saturating_sub(max_tokens.map_or(1, |asked| asked.saturating_sub(1).max(1)))
            )));
    }
    // The last token generated is not read again: it needs no place.
    let room = context - prompt + 1;
    match max_tokens {
        Some(asked) if asked > room => Err(Error::request(format!(
            "the prompt has {prompt} tokens and {asked} more are asked for, the model reads {context} at once"
        ))
        .with_help(format!(
            "ask for {room} or fewer with --max-tokens, shorten the prompt, or choose a model with a longer context"
        ))),
        Some(asked) => Ok(asked),
        None => Ok(room),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(change: impl FnOnce(&mut TextRequest)) -> String {
        let mut request = TextRequest::new(Prompt::Text("once".into()));
        request.validate().unwrap();
        change(&mut request);
        let error = request.validate().unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.help().is_some(), "{error}");
        error.to_string()
    }

    #[test]
    fn what_no_model_can_do_is_refused_by_name_and_value() {
        assert_eq!(refusal(|r| r.sampling.temperature = -1.0), "temperature -1 is no positive number");
        assert_eq!(refusal(|r| r.sampling.top_k = Some(0)), "top-k 0 leaves no token");
        assert_eq!(refusal(|r| r.sampling.repetition = f32::NAN), "repetition penalty NaN is outside 0.01 to 100");
        assert_eq!(refusal(|r| r.max_tokens = Some(0)), "max tokens 0 leaves nothing to do");
        assert_eq!(refusal(|r| r.stop = vec![String::new()]), "a stop string is empty");
        assert_eq!(refusal(|r| r.logprobs = Some(101)), "101 alternatives for each token, more than 100");
        assert_eq!(refusal(|r| r.prompt = Prompt::Ids(vec![])), "there are no token ids to begin with");
        assert_eq!(refusal(|r| r.beams = Some(Beams { width: 0, length_penalty: 1.0 })), "beams 0 is outside 1 to 64");
        // Also where the likeliest token is taken and it does not matter.
        assert_eq!(
            refusal(|r| r.sampling = Sampling { top_p: 2.0, ..Sampling::greedy() }),
            "top-p 2 is not over 0 and up to 1"
        );
    }

    #[test]
    fn a_context_that_is_too_small_is_told_with_all_lengths() {
        assert_eq!(room(4, None, 10).unwrap(), 7);
        assert_eq!(room(4, Some(7), 10).unwrap(), 7);
        let error = room(4, Some(8), 10).unwrap_err();
        assert_eq!(error.to_string(), "the prompt has 4 tokens and 8 more are asked for, the model reads 10 at once");
        assert!(error.help().unwrap().starts_with("ask for 7 or fewer"));
        assert_eq!(room(10, None, 10).unwrap_err().to_string(), "the prompt has 10 tokens, the model reads 10 at once");
        assert!(room(0, None, 10).is_err());
    }
}
