//! Durations as people write them: `500ms`, `30s`, `2m`, `1m30s`. The resolution is a millisecond.

use std::time::Duration;

/// Reads a duration. A number without a unit is refused rather than guessed at.
pub fn parse(text: &str) -> Result<Duration, String> {
    let examples = "a duration looks like 500ms, 30s, 2m or 1m30s";
    let duration = humantime::parse_duration(text).map_err(|_| format!("`{text}`: {examples}"))?;
    if duration.subsec_nanos() % 1_000_000 != 0 {
        return Err(format!("`{text}`: finer than a millisecond"));
    }
    Ok(duration)
}

/// Writes a duration so that [`parse`] reads the same one back.
pub fn format(duration: Duration) -> String {
    let mut left = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut text = String::new();
    for (unit, size) in [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)] {
        if left >= size {
            text += &format!("{}{unit}", left / size);
            left %= size;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::{format, parse};
    use std::time::Duration;

    #[test]
    fn what_is_written_is_read_back() {
        for (text, ms) in [
            ("500ms", 500),
            ("30s", 30_000),
            ("2m", 120_000),
            ("1m30s", 90_000),
            ("1h", 3_600_000),
            ("0s", 0),
        ] {
            assert_eq!(parse(text).unwrap(), Duration::from_millis(ms));
            assert_eq!(format(Duration::from_millis(ms)), text);
        }
        assert_eq!(format(Duration::from_millis(1500)), "1s500ms");
        assert_eq!(parse("1s500ms").unwrap(), Duration::from_millis(1500));
    }

    #[test]
    fn a_number_without_unit_a_fraction_too_fine_and_nonsense_are_refused() {
        for text in ["30", "", "s", "-1s", "1 parsec", "10us", "1s s", "99999999999999999999s"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
