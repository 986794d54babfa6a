//! Text that others wrote, made fit to be shown to a person: on a terminal, in a log, in an error. What programs read is
//! left as it is.

use std::borrow::Cow;

/// Characters of a message that are shown at most, half of them from its end: there it says what was expected.
const MOST: usize = 600;

/// The text with escapes for what a terminal would obey, or show in another order than it is in.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unprintable) {
        return Cow::Borrowed(text);
    }
    let escaped = |c: char| match is_unprintable(c) {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    Cow::Owned(text.chars().map(escaped).collect())
}

/// Control characters, line and paragraph separators, and those that change the direction of what follows (UAX 9).
fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A message that quotes what may be long, without its middle if it is.
pub(crate) fn brief(message: &str) -> String {
    let count = message.chars().count();
    if count <= MOST {
        return message.to_owned();
    }
    let head: String = message.chars().take(MOST / 2).collect();
    let tail: String = message.chars().skip(count - MOST / 2).collect();
    format!("{head}[{} characters]{tail}", count - MOST / 2 * 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_escaped_and_all_else_is_not() {
        assert_eq!(printable("/run/\u{1b}[2Jé\n\u{9b}1m\u{202e}"), "/run/\\u{1b}[2Jé\\n\\u{9b}1m\\u{202e}");
        assert!(matches!(printable("unix:/run/größe.sock"), Cow::Borrowed(_)));
    }

    #[test]
    fn a_long_message_loses_its_middle() {
        assert_eq!(brief("short"), "short");
        let cut = brief(&format!("begin {} end", "ß".repeat(1 << 20)));
        assert!(cut.starts_with("begin ß") && cut.ends_with("ß end"), "{cut}");
        assert!(cut.chars().count() < MOST + 40, "{cut}");
    }
}
