//! Every model family that Conjure knows, declared once: command-line help, documentation and reports read it from here.

/// A model family: one paper, one file of the crate `conjure_models`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    /// Name, which is that of its module in `conjure_models`.
    pub name: &'static str,
    /// What it makes of what, in a few words.
    pub makes: &'static str,
    /// Where it was described.
    pub paper: Paper,
    /// Published sizes that have a config of their own.
    pub presets: &'static [&'static str],
}

/// A publication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paper {
    /// First author, and the others if they are few.
    pub authors: &'static str,
    /// Title.
    pub title: &'static str,
    /// Year of the first version.
    pub year: u16,
    /// Where it can be read.
    pub link: &'static str,
}

impl std::fmt::Display for Paper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, \"{}\", {}, {}", self.authors, self.title, self.year, self.link)
    }
}

const CLIP: Paper = Paper {
    authors: "Radford et al.",
    title: "Learning Transferable Visual Models From Natural Language Supervision",
    year: 2021,
    link: "https://arxiv.org/abs/2103.00020",
};

const LATENT_DIFFUSION: Paper = Paper {
    authors: "Rombach, Blattmann, Lorenz, Esser & Ommer",
    title: "High-Resolution Image Synthesis with Latent Diffusion Models",
    year: 2021,
    link: "https://arxiv.org/abs/2112.10752",
};

/// All families: those that read and write text, then in the order in which a prompt becomes a picture; the assembly comes
/// last.
pub const FAMILIES: &[Family] = &[
    Family {
        name: "encoder",
        makes: "what a text means, as a vector for each token and for the whole, to compare texts by",
        paper: Paper {
            authors: "Devlin, Chang, Lee & Toutanova",
            title: "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
            year: 2018,
            link: "https://arxiv.org/abs/1810.04805",
        },
        presets: &["BERT base", "BERT large", "MiniLM-L6", "RoBERTa base", "XLM-R base"],
    },
    Family {
        name: "encoder_decoder",
        makes: "a text of a text, such as its translation",
        paper: Paper {
            authors: "Vaswani et al.",
            title: "Attention Is All You Need",
            year: 2017,
            link: "https://arxiv.org/abs/1706.03762",
        },
        presets: &["Transformer base", "Transformer big", "OPUS-MT", "T5 small", "T5 base", "T5 v1.1 small"],
    },
    Family {
        name: "lstm_attention",
        makes: "a translation, token by token, with a look back at the source for each: the line before Transformers",
        paper: Paper {
            authors: "Luong, Pham & Manning",
            title: "Effective Approaches to Attention-based Neural Machine Translation",
            year: 2015,
            link: "https://arxiv.org/abs/1508.04025",
        },
        presets: &["Luong 2015"],
    },
    Family {
        name: "clip_text",
        makes: "what a prompt means, as numbers that other models can attend to",
        paper: CLIP,
        presets: &["ViT-L/14", "OpenCLIP ViT-H/14", "OpenCLIP ViT-bigG/14"],
    },
    Family {
        name: "clip_vision",
        makes: "what a picture shows, as numbers beside those of texts",
        paper: CLIP,
        presets: &["ViT-B/32", "ViT-L/14"],
    },
    Family {
        name: "unet_2d_condition",
        makes: "the noise in a latent picture, given the noise level and a prompt",
        paper: LATENT_DIFFUSION,
        presets: &["SD 1.5", "SD 2.1", "SDXL base"],
    },
    Family {
        name: "autoencoder_kl",
        makes: "latents of pictures, and pictures of latents",
        paper: LATENT_DIFFUSION,
        presets: &["Stable Diffusion", "Stable Diffusion XL"],
    },
    Family {
        name: "super_resolution",
        makes: "pictures twice or four times as large",
        paper: Paper {
            authors: "Wang et al.",
            title: "ESRGAN: Enhanced Super-Resolution Generative Adversarial Networks",
            year: 2018,
            link: "https://arxiv.org/abs/1809.00219",
        },
        presets: &[],
    },
    Family {
        name: "image_classifier",
        makes: "what a picture shows and how it is drawn; how alike two pictures look",
        paper: Paper {
            authors: "He, Zhang, Ren & Sun",
            title: "Identity Mappings in Deep Residual Networks",
            year: 2016,
            link: "https://arxiv.org/abs/1603.05027",
        },
        presets: &[],
    },
    Family {
        name: "patch_discriminator",
        makes: "how real each patch of a picture looks, to train others against",
        paper: Paper {
            authors: "Isola, Zhu, Zhou & Efros",
            title: "Image-to-Image Translation with Conditional Adversarial Networks",
            year: 2016,
            link: "https://arxiv.org/abs/1611.07004",
        },
        presets: &[],
    },
    Family {
        name: "decoder",
        makes: "the next token of a text, and so texts",
        paper: Paper {
            authors: "Touvron et al.",
            title: "LLaMA: Open and Efficient Foundation Language Models",
            year: 2023,
            link: "https://arxiv.org/abs/2302.13971",
        },
        presets: &[
            "GPT-2",
            "Pythia 160M",
            "PaLM 8B",
            "MPT 7B",
            "Llama 2 7B",
            "Llama 3.2 1B",
            "Mistral 7B",
            "Qwen 2.5 0.5B",
            "Qwen 3 0.6B",
            "SmolLM 2 135M",
            "SmolLM 3 3B",
            "Gemma 2B",
            "Gemma 2 2B",
            "Gemma 3 270M",
            "Gemma 3 1B",
            "Phi-3 mini",
        ],
    },
    Family {
        name: "stable_diffusion",
        makes: "pictures from words, out of clip_text, unet_2d_condition and autoencoder_kl",
        paper: LATENT_DIFFUSION,
        presets: &["SD 1.x", "SD 2.x", "SDXL base"],
    },
];

/// The family of this name.
pub fn family(name: &str) -> Option<&'static Family> {
    FAMILIES.iter().find(|family| family.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_is_a_model_file_that_cites_its_paper() {
        let models = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/src");
        for (n, one) in FAMILIES.iter().enumerate() {
            let file = [format!("{}.rs", one.name), format!("{}/mod.rs", one.name)]
                .into_iter()
                .find_map(|file| std::fs::read_to_string(models.join(file)).ok());
            let file = file.unwrap_or_else(|| panic!("{} has no model file", one.name));
            assert!(file.starts_with("//!") && file.contains(one.paper.link), "{} cites {}", one.name, one.paper.link);
            assert!(FAMILIES[..n].iter().all(|other| other.name != one.name), "{} is declared twice", one.name);
            assert_eq!(family(one.name), Some(one));
        }
        assert_eq!(family("gpt-9"), None);
    }
}
