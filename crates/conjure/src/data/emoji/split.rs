//! Which pictures are kept from the model, by a fixed rule.
//!
//! The rule looks at the emoji and the style only, never at what else is selected: a picture that one selection trains on
//! is held out in none. What is hashed is not the emoji but its *identity*: drawings that differ only in gender, skin,
//! colour, direction or hour are one identity, so that all of them fall on the same side. Otherwise a blue heart in the
//! training set would answer for a held-out green one.

use super::icon_set::plain;
use crate::data::Split;
use sha2::{Digest, Sha256};

/// How the split is made, for the data set's description.
pub const RULE: &str = "identity = code points without variation selectors, skin tones, gender and direction, one for all \
    that is drawn alike; h(part) = first 8 bytes of SHA-256(\"conjure split 1\\0\" part \"\\0\" identity) / 2^64; \
    held-out-concept where h(concept) < 0.05; else, where h(combination) < 0.05, held-out-combination in the one of noto, \
    twemoji, fluent-emoji and fluent-emoji-flat whose h(style) is lowest; train otherwise";

const SHARE: f64 = 0.05;
/// The styles that draw nearly every emoji: a combination is held out in one of these.
const COMPLETE_STYLES: [&str; 4] = ["noto", "twemoji", "fluent-emoji", "fluent-emoji-flat"];

/// Single code points whose emoji are drawn alike: gender, age within a generation, colour, direction, hour, phase.
#[rustfmt::skip]
const ALIKE: &[&[u32]] = &[
    &[0x1f9d1, 0x1f468, 0x1f469],                                   // person, man, woman
    &[0x1f9d2, 0x1f466, 0x1f467],                                   // child, boy, girl
    &[0x1f9d3, 0x1f474, 0x1f475],                                   // older person, old man, old woman
    &[0x1fac5, 0x1f934, 0x1f478],                                   // person with crown, prince, princess
    &[0x1f385, 0x1f936],                                            // Santa Claus, Mrs. Claus
    &[0x1f46b, 0x1f46c, 0x1f46d],                                   // people holding hands
    &[0x1f483, 0x1f57a],                                            // woman, man dancing
    &[0x1fac4, 0x1f930, 0x1fac3],                                   // pregnant person, woman, man
    &[0x1f6bb, 0x1f6b9, 0x1f6ba],                                   // restroom, of men, of women
    &[0x1f46a, 0x1f48f, 0x1f491],                                   // family, kiss, couple with heart
    &[0x2764, 0x1f9e1, 0x1f49b, 0x1f49a, 0x1f499, 0x1f49c, 0x1f90e, 0x1f5a4, 0x1f90d, 0x1fa77, 0x1fa75, 0x1fa76], // hearts
    &[0x1f534, 0x1f7e0, 0x1f7e1, 0x1f7e2, 0x1f535, 0x1f7e3, 0x1f7e4, 0x26ab, 0x26aa],                             // circles
    &[0x1f7e5, 0x1f7e7, 0x1f7e8, 0x1f7e9, 0x1f7e6, 0x1f7ea, 0x1f7eb, 0x2b1b, 0x2b1c, 0x25fc, 0x25fb, 0x25fe, 0x25fd, 0x25aa, 0x25ab], // squares
    &[0x1f536, 0x1f537, 0x1f538, 0x1f539],                          // diamonds
    &[0x1f53a, 0x1f53b],                                            // triangles
    &[0x1f532, 0x1f533],                                            // square buttons
    &[0x1f4d5, 0x1f4d7, 0x1f4d8, 0x1f4d9],                          // closed books
    &[0x2b06, 0x2197, 0x27a1, 0x2198, 0x2b07, 0x2199, 0x2b05, 0x2196, 0x2195, 0x2194], // straight arrows
    &[0x21a9, 0x21aa, 0x2934, 0x2935],                              // curved arrows
    &[0x25b6, 0x25c0, 0x1f53c, 0x1f53d],                            // play buttons
    &[0x23e9, 0x23ea, 0x23eb, 0x23ec],                              // fast buttons
    &[0x23ed, 0x23ee],                                              // next and last track
    &[0x1f446, 0x1f447, 0x1f448, 0x1f449],                          // pointing hands
    &[0x1f44d, 0x1f44e],                                            // thumbs
    &[0x1faf1, 0x1faf2], &[0x1faf7, 0x1faf8], &[0x1f91b, 0x1f91c],  // hands and fists to the left and right
    &[0x1f50d, 0x1f50e],                                            // magnifying glasses
    &[0x1f30d, 0x1f30e, 0x1f30f],                                   // globes
    &[0x1f311, 0x1f312, 0x1f313, 0x1f314, 0x1f315, 0x1f316, 0x1f317, 0x1f318], // phases of the moon
    &[0x1f31b, 0x1f31c],                                            // moons with a face
    &[0x1f4ea, 0x1f4eb, 0x1f4ec, 0x1f4ed],                          // mailboxes
    &[0x1f947, 0x1f948, 0x1f949],                                   // medals
    &[0x23f3, 0x231b],                                              // hourglasses
    &[0x1f512, 0x1f513],                                            // locks
    &[0x1f515, 0x1f514],                                            // bells
    &[0x1f507, 0x1f508, 0x1f509, 0x1f50a],                          // loudspeakers
];
const JOINER: u32 = 0x200d;
const KEYCAP: u32 = 0x20e3;
const FIRST_CLOCK: u32 = 0x1f550;
const PERSON: u32 = 0x1f9d1;
const CHILD: u32 = 0x1f9d2;
const FAMILY: u32 = 0x1f46a;
const HANDSHAKE: u32 = 0x1f91d;
const CHRISTMAS_TREE: u32 = 0x1f384;

/// What is hashed: the same for all emoji that are drawn alike.
pub(super) fn identity(code_points: &str) -> String {
    let codes: Vec<u32> = plain(code_points).split('-').filter_map(|code| u32::from_str_radix(code, 16).ok()).collect();
    let mut parts: Vec<u32> = Vec::new();
    for code in codes {
        match code {
            // Skin tones; male, female and facing right.
            0x1f3fb..=0x1f3ff | 0x2640 | 0x2642 => {}
            0x27a1 if !parts.is_empty() => {}
            JOINER => {}
            0x1f550..=0x1f567 => parts.push(FIRST_CLOCK),
            code => parts.push(ALIKE.iter().find(|alike| alike.contains(&code)).map_or(code, |alike| alike[0])),
        }
    }
    let people = parts.iter().filter(|&&part| part == PERSON || part == CHILD).count();
    if people >= 2 {
        parts = vec![if parts.contains(&HANDSHAKE) { 0x1f46b } else { FAMILY }];
    } else if parts.ends_with(&[KEYCAP]) {
        parts = vec![KEYCAP];
    } else if parts == [PERSON, CHRISTMAS_TREE] {
        parts = vec![0x1f385];
    }
    parts.iter().map(|part| format!("{part:x}")).collect::<Vec<_>>().join("-")
}

/// The side on which all that is said about an emoji or symbol falls: that of its pictures' concept.
pub(in crate::data) fn of_concept(code_points: &str) -> Split {
    of_identity(&identity(code_points))
}

/// The side on which a text falls that is about nothing but itself.
pub(in crate::data) fn of_identity(identity: &str) -> Split {
    if share("concept", identity) < SHARE { Split::HeldOutConcept } else { Split::Train }
}

/// A number in `[0, 1)` by the rule.
fn share(part: &str, identity: &str) -> f64 {
    let digest = Sha256::digest(format!("conjure split 1\0{part}\0{identity}"));
    let first = digest.first_chunk::<8>().map_or(0, |bytes| u64::from_be_bytes(*bytes));
    first as f64 / 2.0_f64.powi(64)
}

/// The side on which a picture falls. `elsewhere` says whether the emoji is drawn in another style of the selection: where
/// it is not, what would be a combination is a concept that is never seen.
pub(super) fn split(code_points: &str, style: &str, elsewhere: bool) -> Split {
    let identity = identity(code_points);
    let hash = |part: &str| share(part, &identity);
    if of_identity(&identity) == Split::HeldOutConcept {
        return Split::HeldOutConcept;
    }
    if hash("combination") < SHARE {
        let lowest = COMPLETE_STYLES.into_iter().min_by(|a, b| hash(a).total_cmp(&hash(b)));
        if lowest == Some(style) {
            return if elsewhere { Split::HeldOutCombination } else { Split::HeldOutConcept };
        }
    }
    Split::Train
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_drawn_alike_has_one_identity() {
        let same = |a: &str, b: &str| assert_eq!(identity(a), identity(b), "{a} {b}");
        same("1F468-200D-2695-FE0F", "1F469-200D-2695-FE0F"); // man, woman health worker
        same("1F9D1-200D-2695-FE0F", "1F469-1F3FD-200D-2695-FE0F"); // with a skin tone
        same("1F3C3", "1F3C3-200D-2640-FE0F-200D-27A1-FE0F"); // person running, woman running facing right
        same("1F46A", "1F468-200D-1F469-200D-1F467-200D-1F466"); // family
        same("1F48F", "1F469-200D-2764-FE0F-200D-1F48B-200D-1F468"); // kiss
        same("1F9D1-200D-1F91D-200D-1F9D1", "1F46D"); // people holding hands
        same("2764-FE0F", "1F499"); // red heart, blue heart
        same("0023-FE0F-20E3", "0039-FE0F-20E3"); // keycaps
        same("1F550", "1F567"); // clock faces
        same("1F9D1-200D-1F384", "1F936"); // Mx Claus, Mrs. Claus
        let differ = |a: &str, b: &str| assert_ne!(identity(a), identity(b), "{a} {b}");
        differ("1F468-200D-2695-FE0F", "1F468-200D-1F680"); // health worker, astronaut
        differ("2764-FE0F", "2764-FE0F-200D-1F525"); // heart, heart on fire
        differ("1F408", "1F408-200D-2B1B"); // cat, black cat
        differ("1F600", "1F601");
        assert_eq!(identity("27A1-FE0F"), identity("2B05-FE0F"), "an arrow to the right stays an arrow");
    }

    #[test]
    fn a_style_is_held_out_of_few_known_concepts_and_of_no_others() {
        let mut counts = [0_usize; 3];
        for code in 0x10000..0x14000 {
            let code = format!("{code:X}");
            let splits: Vec<Split> = COMPLETE_STYLES.iter().map(|style| split(&code, style, true)).collect();
            let held = |kind| splits.iter().filter(|split| **split == kind).count();
            match (held(Split::HeldOutConcept), held(Split::HeldOutCombination)) {
                (0, 0) => counts[0] += 1,
                (4, 0) => counts[1] += 1,
                (0, 1) => counts[2] += 1,
                other => panic!("{code}: {other:?}"),
            }
            assert_eq!(split(&code, "fxemoji", true) == Split::Train, splits[0] != Split::HeldOutConcept);
        }
        // Binomial with n = 16384, p = 0.05 and 0.0475: mean 819 and 778, standard deviation 28.
        assert!(counts[1].abs_diff(819) < 112 && counts[2].abs_diff(778) < 112, "{counts:?}");
    }

    #[test]
    fn training_never_depends_on_what_else_is_selected() {
        for code in 0x1f300..0x1f700 {
            let code = format!("{code:X}");
            for style in COMPLETE_STYLES {
                let (with, alone) = (split(&code, style, true), split(&code, style, false));
                assert_eq!(with == Split::Train, alone == Split::Train);
                assert_ne!(alone, Split::HeldOutCombination);
            }
        }
    }
}
