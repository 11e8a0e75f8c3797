//! From a request to an explanation.

use super::model::{Outcome, cosines, token};
use super::record::{Group, Plan, Recording, is_cross};
use super::write::{check_tokens, check_weights};
use super::{
    Attention, Candidate, Change, Explanation, Focus, Kind, Prediction, Role, Run, Selection, Sequence, Subject, word,
};
use crate::explain::not_empty;
use crate::{Error, Result};
use conjure_core::{D, Tensor};

/// Predictions are kept of this many positions, the last ones.
const MAX_PREDICTIONS: usize = 256;
/// Tokens in a prediction.
const TOP: usize = 8;

/// What is to be shown.
#[derive(Clone, Debug)]
pub struct Request {
    /// The text.
    pub text: String,
    /// A text to show beside it.
    pub compare: Option<String>,
    /// The layer shown first; the last one unless given.
    pub layer: Option<usize>,
    /// The head shown first.
    pub head: usize,
    /// The word whose row is shown first: `it` where the text has it, else the last token.
    pub word: Option<String>,
    /// Words that the others shall not see.
    pub mask: Vec<String>,
    /// Layer and head of the heads to switch off.
    pub ablate: Vec<(usize, usize)>,
    /// Bytes that the numbers of all runs may have in the page; layers that do not fit are shown small.
    pub budget: usize,
    /// What is to be written as a table, so that what would be too large is refused before the model runs.
    pub table: Option<Selection>,
    /// Whether it is to be drawn, for the same reason.
    pub drawing: bool,
}

impl Request {
    /// The text alone, with 64 MiB for its numbers.
    pub fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            compare: None,
            layer: None,
            head: 0,
            word: None,
            mask: Vec::new(),
            ablate: Vec::new(),
            budget: 64 << 20,
            table: None,
            drawing: false,
        }
    }

    /// Refuses what no model could show.
    ///
    /// # Errors
    /// A text that is empty.
    pub fn validate(&self) -> Result<()> {
        std::iter::once(&self.text).chain(&self.compare).try_for_each(|text| not_empty(text.trim()))
    }
}

/// Runs the model as often as the request needs. `name` is the model's for the title.
///
/// # Errors
/// Before the model runs: a layer, head or word that there is not; a text that is empty or too long; a table or drawing that
/// would be too large. Those of the model.
pub fn explain(subject: &dyn Subject, name: &str, request: &Request) -> Result<Explanation> {
    request.validate()?;
    let (layers, heads) = (subject.layers(), subject.heads());
    let layer = request.layer.unwrap_or(layers.saturating_sub(1));
    check(layer, request.head, layers, heads)?;
    request.ablate.iter().try_for_each(|(layer, head)| check(*layer, *head, layers, heads))?;

    let ids = encode(subject, &request.text)?;
    let pieces: Vec<String> = ids.iter().map(|id| subject.piece(*id)).collect();
    let mut hidden = Vec::new();
    for masked in &request.mask {
        let found = word::find(&pieces, masked);
        if found.is_empty() {
            return Err(not_there("mask", masked, &pieces));
        }
        hidden.extend(found.into_iter().flatten());
    }
    hidden.sort_unstable();
    hidden.dedup();
    let looked_up = request.word.as_deref().unwrap_or("it");
    let token = match (word::find(&pieces, looked_up).last(), &request.word) {
        (Some(range), _) => range.end - 1,
        (None, Some(missing)) => return Err(not_there("look at", missing, &pieces)),
        (None, None) => ids.len() - 1,
    };

    let compared = match &request.compare {
        Some(text) => {
            let ids = encode(subject, text)?;
            let pieces: Vec<String> = ids.iter().map(|id| subject.piece(*id)).collect();
            let token = word::find(&pieces, looked_up).last().map_or(ids.len() - 1, |range| range.end - 1);
            Some((text, ids, token))
        }
        None => None,
    };

    let changes = !hidden.is_empty() || !request.ablate.is_empty();
    let count = 1 + usize::from(request.compare.is_some()) + usize::from(changes);
    if request.drawing {
        check_tokens(ids.len())?;
    }
    if let Some(table) = request.table {
        // What a translator writes is added when it is known.
        let runs = [Some(ids.len()), compared.as_ref().map(|(_, ids, _)| ids.len()), changes.then_some(ids.len())];
        let pairs = runs.into_iter().flatten().fold(0usize, |sum, n| sum.saturating_add(n.saturating_mul(n)));
        let in_all = table.layer.map_or(subject.input_layers(), |_| 1) * table.head.map_or(heads, |_| 1);
        check_weights(pairs.saturating_mul(in_all), table)?;
    }
    let plan = Plan {
        layers,
        first: layer,
        budget: request.budget / (count * subject.kinds()),
        table: request.table,
        hidden: Vec::new(),
        silent: Vec::new(),
        // What is hidden is in the input: an output that looks at itself sees all of it.
        hides: |group| is_cross(group) || !group.contains("decoder"),
    };
    let (original, outcome) = run(subject, Role::Original, &request.text, &ids, None, plan.clone())?;
    let mut runs = vec![original];
    let mut compared_token = None;
    if let Some((text, ids, token)) = compared {
        compared_token = Some(token);
        let (mut other, its) = run(subject, Role::Compared, text, &ids, None, plan.clone())?;
        other.embedding_cosine = embedding_cosine(&outcome, &its)?;
        runs.push(other);
    }
    if changes {
        let change = Change { hidden: hidden.clone(), silent: request.ablate.clone() };
        let plan = Plan { hidden, silent: request.ablate.clone(), ..plan };
        let (mut changed, its) =
            run(subject, Role::Changed, &request.text, &ids, Some(outcome.output.as_slice()), plan)?;
        changed.change = Some(change);
        if let (Some(before), Some(after)) = (&outcome.hidden, &its.hidden) {
            changed.output_cosines = cosines(before, after)?;
        }
        changed.embedding_cosine = embedding_cosine(&outcome, &its)?;
        runs.push(changed);
    }
    Ok(Explanation {
        format: "conjure.attention/1",
        model: name.to_owned(),
        family: subject.family().to_owned(),
        layers,
        focus: Focus { attention: 0, layer, head: request.head, token, compared_token },
        runs,
    })
}

fn check(layer: usize, head: usize, layers: usize, heads: usize) -> Result<()> {
    let range = |what: &str, value: usize, count: usize| {
        if value < count {
            return Ok(());
        }
        Err(Error::request(format!("there is no {what} {value}: the model has {count}"))
            .with_help(format!("{what}s are counted from 0 to {}", count.saturating_sub(1))))
    };
    range("layer", layer, layers)?;
    range("head", head, heads)
}

fn not_there(what: &str, word: &str, pieces: &[String]) -> Error {
    Error::request(format!("there is no word {word:?} to {what} in the text"))
        .with_help(format!("the tokens spell {:?}", pieces.concat().trim()))
}

fn encode(subject: &dyn Subject, text: &str) -> Result<Vec<u32>> {
    let ids = subject.encode(text)?;
    if ids.is_empty() {
        return Err(Error::request(format!("the text {text:?} has no tokens")).with_help("give a sentence"));
    }
    Ok(ids)
}

fn embedding_cosine(a: &Outcome, b: &Outcome) -> Result<Option<f32>> {
    let (Some(a), Some(b)) = (&a.embedding, &b.embedding) else { return Ok(None) };
    Ok(cosines(a, b)?.first().copied())
}

fn run(
    subject: &dyn Subject,
    role: Role,
    text: &str,
    ids: &[u32],
    output: Option<&[u32]>,
    plan: Plan,
) -> Result<(Run, Outcome)> {
    let mut recording = Recording::new(plan);
    let mut outcome = subject.run(ids, output.filter(|ids| !ids.is_empty()), &mut recording)?;
    if outcome.hidden.is_none() {
        outcome.hidden = recording.last.map(|x| x.squeeze(0)).transpose()?;
    }
    let sequence = |name: &str, ids: &[u32]| Sequence {
        name: name.to_owned(),
        tokens: ids.iter().map(|id| token(subject, *id)).collect(),
    };
    let mut sequences = vec![sequence("Input", ids)];
    if !outcome.output.is_empty() {
        sequences.push(sequence("Output", &outcome.output));
    }
    let run = Run {
        role,
        text: text.to_owned(),
        change: None,
        attentions: recording.groups.into_iter().map(|group| attention(group, &sequences)).collect(),
        sequences,
        predictions: outcome
            .logits
            .as_ref()
            .map(|logits| predictions(subject, logits))
            .transpose()?
            .unwrap_or_default(),
        output_cosines: Vec::new(),
        embedding_cosine: None,
    };
    Ok((run, outcome))
}

/// Which sequences an attention connects, by its path; with one sequence there is no question.
fn attention(group: Group, sequences: &[Sequence]) -> Attention {
    let two = sequences.len() > 1;
    let (queries, keys) = match (two && group.name.contains("decoder"), two && is_cross(&group.name)) {
        (_, true) => (1, 0),
        (true, false) => (1, 1),
        (false, false) => (0, 0),
    };
    let causal = group.layers.iter().all(|layer| layer.bias.is_causal((layer.time, layer.source)));
    let kind = match (queries == keys, causal) {
        (false, _) => Kind::Cross,
        (true, true) => Kind::Causal,
        (true, false) => Kind::Full,
    };
    let name = format!("{} - {}", sequences[queries].name, sequences[keys].name);
    Attention { name, kind, queries, keys, layers: group.layers }
}

fn predictions(subject: &dyn Subject, logits: &Tensor) -> Result<Vec<Prediction>> {
    let time = logits.dim(0)?;
    let first = time.saturating_sub(MAX_PREDICTIONS);
    let logits = logits.narrow(0, first, time - first)?.to_dtype(conjure_core::DType::F32)?;
    let max = logits.max_keepdim(D::Minus1)?;
    let exp = logits.broadcast_sub(&max)?.exp()?;
    let rows = exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?.to_vec2::<f32>()?;
    let best = |(n, row): (usize, Vec<f32>)| {
        let mut order: Vec<u32> = (0..row.len() as u32).collect();
        let better = |a: &u32, b: &u32| row[*b as usize].total_cmp(&row[*a as usize]).then(a.cmp(b));
        if order.len() > TOP {
            order.select_nth_unstable_by(TOP, better);
            order.truncate(TOP);
        }
        order.sort_unstable_by(better);
        let candidate = |id: u32| Candidate { id, text: token(subject, id).text, probability: row[id as usize] };
        Prediction { position: first + n, top: order.into_iter().map(candidate).collect() }
    };
    Ok(rows.into_iter().enumerate().map(best).collect())
}
