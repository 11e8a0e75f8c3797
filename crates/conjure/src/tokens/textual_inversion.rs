//! Files of learned tokens: Gal et al. 2022, "An Image is Worth One Word: Personalizing Text-to-Image Generation using
//! Textual Inversion", <https://arxiv.org/abs/2208.01618>.
//!
//! | written by | file | content | name of the token |
//! |---|---|---|---|
//! | diffusers | `learned_embeds.safetensors`, `.bin` | token to vectors | in the file |
//! | AUTOMATIC1111's web interface | `.pt` | `string_to_param`: `*` to vectors | the file's |
//! | the same, as safetensors | `.safetensors` | `emb_params` | the file's |
//! | trainers for SDXL | `.safetensors` | `clip_l` and `clip_g` | the file's |

use crate::{Error, Result};
use conjure_core::weights::{self, TensorSource};
use conjure_core::{DType, Device, Tensor};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Most vectors of one token: as many as a text encoder reads at once, less the marks of start and end.
pub const MAX_VECTORS: usize = 75;
/// Most tokens in one file.
const MAX_TOKENS: usize = 256;

/// The names of the tensor for each text encoder, in files that hold one token without its name.
const NAMELESS: [&[&str]; 3] = [&["*"], &["emb_params"], &["clip_l", "clip_g"]];

/// A token and what it means to each text encoder.
#[derive(Clone, Debug)]
pub struct LearnedToken {
    /// How a prompt spells it.
    pub token: String,
    /// For each text encoder `(vectors, hidden_size)`; all with the same number of vectors.
    pub vectors: Vec<Tensor>,
}

impl LearnedToken {
    /// Reads the tokens of a file for text encoders of these widths (`hidden_size`), one or two.
    ///
    /// # Errors
    /// Unreadable, no learned tokens; vectors of another width, as for another model; values that are no numbers.
    pub fn read(path: &Path, widths: &[usize]) -> Result<Vec<Self>> {
        let source = weights::open(path)?;
        let infos = source.infos();
        let named = |names: &[&str]| infos.len() == names.len() && names.iter().all(|name| infos.contains_key(*name));
        if let Some(names) = NAMELESS.into_iter().find(|names| named(names)) {
            let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
            return Ok(vec![Self::load(path, &source, stem, names, widths)?]);
        }
        if infos.len() > MAX_TOKENS || infos.values().any(|info| !matches!(info.shape.rank(), 1 | 2)) {
            let error = Error::file(path, "is no textual inversion: it holds other tensors than vectors of tokens");
            let family = weights::describe(source.as_ref()).family;
            return Err(match family {
                Some(family) => error.with_help(format!("it looks like weights: {family}")),
                None => error.with_help("a textual inversion holds a vector, or a few, for each token"),
            });
        }
        let names: Vec<String> = infos.keys().cloned().collect();
        names.into_iter().map(|name| Self::load(path, &source, name.clone(), &[&name], widths)).collect()
    }

    fn load(
        path: &Path,
        source: &Arc<dyn TensorSource>,
        token: String,
        names: &[&str],
        widths: &[usize],
    ) -> Result<Self> {
        if names.len() != widths.len() {
            return Err(Error::file(
                path,
                format!("has vectors for {} text encoders, the model has {}", names.len(), widths.len()),
            )
            .with_help(match names.len() {
                1 => "it was made for Stable Diffusion 1 or 2, and the model is an XL",
                _ => "it was made for Stable Diffusion XL",
            }));
        }
        let mut vectors = Vec::with_capacity(names.len());
        for (name, width) in names.iter().zip(widths) {
            let stored = source.load(name, DType::F32, &Device::Cpu)?;
            let rows = if stored.rank() == 1 { stored.unsqueeze(0)? } else { stored };
            let (n, found) =
                rows.dims2().map_err(|_| Error::file(path, format!("{name} has shape {:?}", rows.dims())))?;
            if found != *width {
                let family = match found {
                    768 => "Stable Diffusion 1",
                    1024 => "Stable Diffusion 2",
                    _ => "another model",
                };
                return Err(Error::file(
                    path,
                    format!("{name} has vectors of {found} features, the text encoder's have {width}"),
                )
                .with_help(format!("it was made for {family}")));
            }
            if !(1..=MAX_VECTORS).contains(&n) {
                return Err(Error::file(path, format!("{name} has {n} vectors, a prompt has room for {MAX_VECTORS}")));
            }
            if rows.flatten_all()?.to_vec1::<f32>()?.iter().any(|value| !value.is_finite()) {
                return Err(Error::file(path, format!("{name} holds values that are not finite numbers"))
                    .with_help("the file is damaged or its training diverged"));
            }
            vectors.push(rows);
        }
        if vectors.iter().any(|rows| rows.dim(0).ok() != vectors[0].dim(0).ok()) {
            return Err(Error::file(path, "has different numbers of vectors for the two text encoders"));
        }
        Ok(Self { token, vectors })
    }

    /// Number of vectors.
    pub fn len(&self) -> usize {
        self.vectors.first().map_or(0, |rows| rows.dims()[0])
    }

    /// Whether it has no vector, which no file can make it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes tokens in diffusers' layout, which knows one text encoder.
    ///
    /// # Errors
    /// A token for two text encoders; the file cannot be written.
    pub fn save(path: &Path, tokens: &[Self]) -> Result<()> {
        let mut tensors = BTreeMap::new();
        for token in tokens {
            let [rows] = token.vectors.as_slice() else {
                return Err(Error::request(format!(
                    "{:?} has vectors for {} text encoders",
                    token.token,
                    token.vectors.len()
                ))
                .with_help("diffusers' layout holds those of one"));
            };
            tensors.insert(token.token.clone(), rows.clone());
        }
        weights::save(path, &tensors, &BTreeMap::from([("format".to_owned(), "pt".to_owned())]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, file: &str, tensors: &[(&str, &[usize])]) -> std::path::PathBuf {
        let path = folder.join(file);
        let tensor = |shape: &[usize]| Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap();
        let tensors = tensors.iter().map(|(name, shape)| ((*name).to_owned(), tensor(shape))).collect();
        weights::save(&path, &tensors, &BTreeMap::new()).unwrap();
        path
    }

    #[test]
    fn each_layout_names_its_token() {
        let folder = tempfile::tempdir().unwrap();
        let read = |file: &str, tensors: &[(&str, &[usize])], widths: &[usize]| {
            let tokens = LearnedToken::read(&write(folder.path(), file, tensors), widths).unwrap();
            tokens.into_iter().map(|t| (t.token.clone(), t.len(), t.vectors.len())).collect::<Vec<_>>()
        };
        assert_eq!(
            read("a.safetensors", &[("<x>", &[4]), ("<y>", &[2, 4])], &[4]),
            [("<x>".to_owned(), 1, 1), ("<y>".to_owned(), 2, 1)]
        );
        assert_eq!(read("spiky.safetensors", &[("emb_params", &[3, 4])], &[4]), [("spiky".to_owned(), 3, 1)]);
        assert_eq!(
            read("xl.safetensors", &[("clip_l", &[2, 4]), ("clip_g", &[2, 6])], &[4, 6]),
            [("xl".to_owned(), 2, 2)]
        );
    }

    #[test]
    fn saved_tokens_are_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("learned_embeds.safetensors");
        let rows = Tensor::new(&[[1f32, 2.0], [3.0, 4.0]], &Device::Cpu).unwrap();
        LearnedToken::save(&path, &[LearnedToken { token: "<x>".into(), vectors: vec![rows] }]).unwrap();
        let again = LearnedToken::read(&path, &[2]).unwrap();
        assert_eq!(again[0].token, "<x>");
        assert_eq!(again[0].vectors[0].to_vec2::<f32>().unwrap(), [[1.0, 2.0], [3.0, 4.0]]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |tensors: &[(&str, &[usize])], widths: &[usize]| {
            let error = LearnedToken::read(&write(folder.path(), "a.safetensors", tensors), widths).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            format!("{error}; {}", error.help().unwrap_or_default())
        };
        let wide = refused(&[("<x>", &[1024])], &[768]);
        assert!(wide.ends_with(
            "<x> has vectors of 1024 features, the text encoder's have 768; it was made for Stable Diffusion 2"
        ));
        assert!(refused(&[("<x>", &[768])], &[768, 1280]).contains("vectors for 1 text encoders, the model has 2"));
        assert!(
            refused(&[("lora_unet_x.lora_up.weight", &[4, 4, 1, 1])], &[4]).contains("it looks like weights: LoRA")
        );
        assert!(refused(&[("<x>", &[76, 4])], &[4]).contains("76 vectors"));
    }
}
