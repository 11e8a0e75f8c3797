//! Whether weights fit a model: what is missing, unexpected or of another shape, and why that may be.

use super::describe::{LORA, SINGLE_FILE, kind};
use super::{ParameterSpec, TensorSource};
use crate::{Error, Result, Shape};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display, Write};
use std::path::Path;

/// A tensor that is there, with another shape than the model's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misshapen {
    /// Its name.
    pub name: String,
    /// Its shape in the source.
    pub stored: Shape,
    /// The shape that the model asks for.
    pub asked: Shape,
}

/// How a source fits what a model asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fit {
    /// Asked for and not in the source.
    pub missing: Vec<String>,
    /// In the source and not asked for.
    pub unexpected: Vec<String>,
    /// Of another shape.
    pub misshapen: Vec<Misshapen>,
    /// The likely reason why the source does not fit.
    pub cause: Option<String>,
}

/// Compares what a model asks for, as [`super::Params::outline`] records it, with a source. Nothing is read.
pub fn check(asked: &[ParameterSpec], source: &dyn TensorSource) -> Fit {
    let stored = source.infos();
    let wanted: BTreeMap<&str, &Shape> = asked.iter().map(|spec| (spec.name.as_str(), &spec.shape)).collect();
    let mut fit = Fit::default();
    for (&name, &shape) in &wanted {
        match stored.get(name) {
            None => fit.missing.push(name.to_owned()),
            Some(info) if info.shape != *shape => fit.misshapen.push(Misshapen {
                name: name.to_owned(),
                stored: info.shape.clone(),
                asked: shape.clone(),
            }),
            Some(_) => {}
        }
    }
    fit.unexpected = stored.keys().filter(|name| !wanted.contains_key(name.as_str())).cloned().collect();
    if !fit.fits() {
        let names: BTreeSet<&str> = stored.keys().map(String::as_str).collect();
        fit.cause = cause(&fit, &wanted.keys().copied().collect(), &names);
    }
    fit
}

/// The first explanation that the names and shapes support, the most certain first.
fn cause(fit: &Fit, wanted: &BTreeSet<&str>, stored: &BTreeSet<&str>) -> Option<String> {
    if stored.is_empty() {
        return Some("the file holds no tensors".to_owned());
    }
    let held = kind(stored.iter().copied());
    match held {
        Some(LORA) => return Some("this is a LoRA: it changes a model and is none itself".to_owned()),
        Some(SINGLE_FILE) if !fit.missing.is_empty() => {
            return Some("this is a single-file checkpoint with its authors' key names, not one component".to_owned());
        }
        _ => {}
    }
    if let Some(prefix) = shared_prefix(&fit.missing, stored) {
        return Some(format!("in the file every name begins with {prefix:?}; it was saved from a larger model"));
    }
    let unexpected: BTreeSet<&str> = fit.unexpected.iter().map(String::as_str).collect();
    if let Some(prefix) = shared_prefix(&fit.unexpected, wanted) {
        return Some(format!("in the file the names lack the beginning {prefix:?}; it holds only the inner model"));
    }
    if let (Some(held), Some(asked)) = (held, kind(wanted.iter().copied()))
        && held != asked
    {
        return Some(format!("the file holds another component: {held} instead of {asked}"));
    }
    let old = |name: &&str| [".query.weight", ".key.weight", ".proj_attn.weight"].iter().any(|end| name.ends_with(end));
    if unexpected.iter().any(old) && fit.missing.iter().any(|name| name.ends_with(".to_q.weight")) {
        return Some("the file has the attention names that diffusers used before version 0.18".to_owned());
    }
    if fit.missing.is_empty() || !fit.misshapen.is_empty() {
        return Some("the config and the weights are of different versions or sizes of the model".to_owned());
    }
    if fit.missing.len() == wanted.len() {
        return Some("the file holds a model of another family".to_owned());
    }
    if unexpected.is_empty() {
        return Some("the file is incomplete: one shard of several, or saved only in part".to_owned());
    }
    Some("the config and the weights are of different versions of the model".to_owned())
}

/// The text before nearly all (nine in ten) of `names` among `longer`.
fn shared_prefix(names: &[String], longer: &BTreeSet<&str>) -> Option<String> {
    // The longest name is the least likely to end like another by chance.
    let probe = names.iter().max_by_key(|name| name.len())?;
    longer.iter().filter_map(|name| name.strip_suffix(probe.as_str())).find_map(|prefix| {
        let found = names.iter().filter(|name| longer.contains(format!("{prefix}{name}").as_str())).count();
        (prefix.ends_with('.') && found * 10 >= names.len() * 9).then(|| prefix.to_owned())
    })
}

impl Fit {
    /// Whether the model can be loaded. Unexpected tensors do not stop that.
    pub fn fits(&self) -> bool {
        self.missing.is_empty() && self.misshapen.is_empty()
    }

    /// Nothing if the model can be loaded, else the whole report as an error about the file `path`.
    ///
    /// # Errors
    /// The source does not fit.
    pub fn require(&self, path: impl AsRef<Path>) -> Result<()> {
        if self.fits() {
            return Ok(());
        }
        let error = Error::file(path, format!("the weights do not fit the model: {}", self.to_string().trim_end()));
        Err(match &self.cause {
            Some(cause) => error.with_help(cause),
            None => error,
        })
    }
}

impl Display for Fit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.fits() && self.unexpected.is_empty() {
            return f.write_str("every tensor fits");
        }
        let mut first = true;
        let mut section = |f: &mut fmt::Formatter<'_>, count: usize, what: &str, lines: Vec<String>| {
            if count == 0 {
                return Ok(());
            }
            let plural = if count == 1 { "tensor" } else { "tensors" };
            let start = if std::mem::take(&mut first) { "" } else { "\n" };
            write!(f, "{start}{count} {what} {plural}")?;
            lines.iter().try_for_each(|line| write!(f, "\n  {line}"))
        };
        section(f, self.missing.len(), "missing", grouped(&self.missing))?;
        let shapes =
            |m: &Misshapen| format!("{}: {:?} in the file, {:?} in the model", m.name, m.stored.dims(), m.asked.dims());
        let mut lines: Vec<String> = self.misshapen.iter().take(MAX_LINES).map(shapes).collect();
        if self.misshapen.len() > MAX_LINES {
            lines.push(format!("and {} more", self.misshapen.len() - MAX_LINES));
        }
        section(f, self.misshapen.len(), "misshapen", lines)?;
        section(f, self.unexpected.len(), "unexpected", grouped(&self.unexpected))
    }
}

/// Most lines for one kind of misfit.
const MAX_LINES: usize = 12;

/// Names grouped by common prefix, `down_blocks.1.attentions.* (24 tensors)`: by as many of their parts as leave few
/// enough lines.
fn grouped(names: &[String]) -> Vec<String> {
    let deepest = names.iter().map(|name| name.split('.').count()).max().unwrap_or(1);
    let group_by = |depth: usize| {
        let mut groups: BTreeMap<String, usize> = BTreeMap::new();
        for name in names {
            let mut parts = name.match_indices('.').map(|(at, _)| at);
            let group = match parts.nth(depth - 1) {
                Some(end) => format!("{}.*", &name[..end]),
                None => name.clone(),
            };
            *groups.entry(group).or_default() += 1;
        }
        groups
    };
    let groups = (1..=deepest).rev().map(group_by).find(|groups| groups.len() <= MAX_LINES);
    let groups = groups.unwrap_or_else(|| group_by(1));
    let more = groups.len().saturating_sub(MAX_LINES);
    let mut lines: Vec<String> = groups
        .into_iter()
        .take(MAX_LINES)
        .map(|(mut group, count)| {
            if count > 1 {
                let _ = write!(group, " ({count} tensors)");
            }
            group
        })
        .collect();
    if more > 0 {
        lines.push(format!("and {more} more groups"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::MemorySource;
    use crate::{DType, Device, Tensor};

    fn source(names: &[&str]) -> MemorySource {
        MemorySource::new(
            names.iter().map(|name| ((*name).to_owned(), Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap())),
        )
    }

    fn asked(names: &[&str]) -> Vec<ParameterSpec> {
        names.iter().map(|name| ParameterSpec { name: (*name).to_owned(), shape: Shape::from(2) }).collect()
    }

    fn cause_of(wanted: &[&str], stored: &[&str]) -> String {
        check(&asked(wanted), &source(stored)).cause.unwrap()
    }

    const UNET: [&str; 3] = ["time_embedding.linear_1.weight", "conv_in.weight", "conv_out.weight"];

    #[test]
    fn what_fits_fits() {
        let fit = check(&asked(&UNET), &source(&UNET));
        assert!(fit.fits());
        assert_eq!((fit.cause.clone(), fit.to_string()), (None, "every tensor fits".to_owned()));
        assert!(fit.require("unet").is_ok());
        let more = check(&asked(&UNET[..2]), &source(&UNET));
        assert!(more.fits());
        assert_eq!(more.to_string(), "1 unexpected tensor\n  conv_out.weight");
    }

    #[test]
    fn every_misfit_is_named() {
        let mut specs = asked(&UNET);
        specs[1].shape = Shape::from((4, 9));
        let fit = check(&specs, &source(&["conv_in.weight", "conv_out.weight", "extra"]));
        assert_eq!(fit.missing, ["time_embedding.linear_1.weight"]);
        assert_eq!(fit.unexpected, ["extra"]);
        let error = fit.require("unet/model.safetensors").unwrap_err();
        assert_eq!(
            error.to_string(),
            "unet/model.safetensors: the weights do not fit the model: 1 missing tensor\n  \
             time_embedding.linear_1.weight\n1 misshapen tensor\n  conv_in.weight: [2] in the file, [4, 9] in the \
             model\n1 unexpected tensor\n  extra"
        );
        assert_eq!(error.exit_code(), 2);
        assert!(error.help().unwrap().contains("different versions"));
    }

    #[test]
    fn causes() {
        for (stored, expected) in [
            (vec![], "holds no tensors"),
            (vec!["lora_unet_down_blocks_0.lora_up.weight"], "this is a LoRA"),
            (vec!["model.diffusion_model.input_blocks.0.0.weight"], "single-file checkpoint"),
            (vec!["text_model.embeddings.token_embedding.weight"], "CLIP text encoder instead of U-Net"),
            (
                vec!["unet.time_embedding.linear_1.weight", "unet.conv_in.weight", "unet.conv_out.weight"],
                "begins with \"unet.\"",
            ),
            (vec!["conv_in.weight"], "is incomplete"),
            (vec!["a", "b"], "another family"),
            (vec!["conv_in.weight", "a"], "different versions"),
        ] {
            let cause = cause_of(&UNET, &stored);
            assert!(cause.contains(expected), "{stored:?}: {cause}");
        }
        let inner = cause_of(&["text_model.a.weight", "text_model.b.weight"], &["a.weight", "b.weight"]);
        assert!(inner.contains("lack the beginning \"text_model.\""), "{inner}");
        let old = cause_of(&["mid.to_q.weight", "mid.norm.weight"], &["mid.query.weight", "mid.norm.weight"]);
        assert!(old.contains("before version 0.18"), "{old}");
    }

    #[test]
    fn long_lists_are_grouped_by_prefix() {
        let names: Vec<String> = (0..2)
            .flat_map(|block| (0..24).map(move |i| format!("down_blocks.{block}.attentions.{i}.weight")))
            .chain(["conv_in.weight".to_owned()])
            .collect();
        assert_eq!(
            grouped(&names),
            ["conv_in.weight", "down_blocks.0.attentions.* (24 tensors)", "down_blocks.1.attentions.* (24 tensors)"]
        );
        let flat: Vec<String> = (10..40).map(|i| format!("t{i}")).collect();
        let lines = grouped(&flat);
        assert_eq!((lines.len(), lines[12].as_str()), (13, "and 18 more groups"));
    }
}
