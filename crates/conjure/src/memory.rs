//! How much memory there is.

/// Bytes of memory that the system could give away; `None` where it does not say.
pub(crate) fn free() -> Option<u64> {
    available(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

/// Linux's estimate, and swap space, from the text of `/proc/meminfo`.
fn available(meminfo: &str) -> Option<u64> {
    let kibibytes = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':').split_whitespace().next()?.parse::<u64>().ok()
    };
    Some((kibibytes("MemAvailable")? + kibibytes("SwapFree").unwrap_or(0)).saturating_mul(1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_tells_what_is_available() {
        let text = "MemTotal:       24000000 kB\nMemAvailable:    2000000 kB\nSwapFree:  1 kB\n";
        assert_eq!(available(text), Some(2_000_001 * 1024));
        assert_eq!(available("MemTotal: 5 kB\n"), None);
    }
}
