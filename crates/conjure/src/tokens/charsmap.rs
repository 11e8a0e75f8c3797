//! Is the character map inside a `tokenizer.json` sound?

use super::sentencepiece::MAX_REPLACEMENT;
use serde_json::{Map, Value};

/// The double array that the `spm_precompiled` crate will walk without looking: every step that a text can make stays inside.
pub(super) fn check(part: &Map<String, Value>) -> Result<(), String> {
    let map = part.get("precompiled_charsmap").and_then(Value::as_str).ok_or("its character map is missing")?;
    let map = base64(map).ok_or("its character map is not base64")?;
    let damaged = || "its character map is damaged".to_owned();
    let (size, rest) = map.split_first_chunk::<4>().ok_or_else(damaged)?;
    let (array, texts) = rest.split_at_checked(u32::from_le_bytes(*size) as usize / 4 * 4).ok_or_else(damaged)?;
    let texts = std::str::from_utf8(texts).map_err(|_| damaged())?;
    if texts.split('\0').any(|text| text.len() > MAX_REPLACEMENT) {
        return Err(damaged());
    }
    let units: Vec<u32> = array.as_chunks::<4>().0.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
    let target = |position: usize, unit: u32| position ^ ((unit >> 10) << ((unit & 0x200) >> 6)) as usize;
    let mut seen = vec![false; units.len()];
    let mut waiting = vec![target(0, *units.first().ok_or_else(damaged)?)];
    while let Some(base) = waiting.pop() {
        for byte in 1..=255u32 {
            let position = base ^ byte as usize;
            let unit = *units.get(position).ok_or_else(damaged)?;
            if unit & 0x8000_00ff != byte || std::mem::replace(&mut seen[position], true) {
                continue;
            }
            let base = target(position, unit);
            if unit & 0x100 != 0 {
                let value = (*units.get(base).ok_or_else(damaged)? & 0x7fff_ffff) as usize;
                if !texts.is_char_boundary(value) {
                    return Err(damaged());
                }
            }
            waiting.push(base);
        }
    }
    Ok(())
}

/// Standard base64 with padding.
fn base64(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => Some(c - b'A'),
        b'a'..=b'z' => Some(c - b'a' + 26),
        b'0'..=b'9' => Some(c - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let (groups, []) = text.as_bytes().as_chunks::<4>() else { return None };
    let mut out = Vec::with_capacity(groups.len() * 3);
    for (n, group) in groups.iter().enumerate() {
        let padding = group.iter().rev().take_while(|c| **c == b'=').count();
        if padding > 2 || (padding > 0 && n + 1 != groups.len()) {
            return None;
        }
        let mut bits = 0u32;
        for c in &group[..4 - padding] {
            bits = bits << 6 | u32::from(digit(*c)?);
        }
        bits <<= 6 * padding;
        let bytes = bits.to_be_bytes();
        // Bits that no byte has are zero, or the crate's reader refuses them.
        if bytes[4 - padding..].iter().any(|byte| *byte != 0) {
            return None;
        }
        out.extend(&bytes[1..4 - padding]);
    }
    Some(out)
}
